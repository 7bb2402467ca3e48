use super::spelling::Spellings;
use super::*;

const PAN: &str = "4117347806156383";

fn cleaned(text: &str) -> String {
    let (pan, cvv) = (Pan::parse(PAN).expect("a PAN"), Cvv::parse("850").expect("a CVV"));
    scrub(text, Own { pan: Some(&pan), cvv: Some(&cvv), ..Own::default() }).expect("JSON")
}

#[test]
fn secret_members_go_by_name_however_spelled() {
    for name in [
        "cvv",
        "CVC",
        "cvn",
        "securityCode",
        "security_code",
        "cavv",
        "caav",
        "cardPasswordDigest",
        "cardToken",
    ] {
        for value in ["\"123\"", "123", "{\"x\":\"123\"}", "[\"123\"]", "null"] {
            let text = cleaned(&format!("{{\"a\":[{{\"{name}\":{value}}}]}}"));
            assert_eq!(text, format!("{{\"a\":[{{\"{name}\":\"[removed]\"}}]}}"));
        }
    }
}

#[test]
fn names_count_in_json_that_is_carried_as_text() {
    let inner = r#" {"cvv":"123","a":[{"cardNo":"4117347806156383","b":"[{\"cavv\":1}]"}]}"#;
    let mut text = String::new();
    push_string(&mut text, inner);
    let once = cleaned(&format!("[{text}]"));
    let items: Vec<String> = serde_json::from_str(&once).expect("a list of texts");
    let expected =
        r#"{"cvv":"[removed]","a":[{"cardNo":"************6383","b":"[{\"cavv\":\"[removed]\"}]"}]}"#;
    assert_eq!(items, [expected]);
    for text in [r#"["{not JSON"]"#, r#"["[removed]"]"#, r#"["{\"a\":1}"]"#] {
        assert_eq!(cleaned(text), text);
    }
}

#[test]
fn a_card_number_stays_only_masked() {
    for (value, expected) in [
        ("************6383", "************6383"),
        ("411734******6383", "411734******6383"),
        ("", ""),
        (PAN, "************6383"),
        ("4117 3478 0615 6383", "************6383"),
        ("9490220011669217", "************9217"),
        ("41173478061563**", "[removed]"),
        ("4117347806156384", "[removed]"),
    ] {
        for name in ["cardNo", "card_no"] {
            let text = cleaned(&format!("{{\"{name}\":\"{value}\"}}"));
            assert_eq!(text, format!("{{\"{name}\":\"{expected}\"}}"));
        }
    }
    assert_eq!(cleaned("{\"cardNo\":4117347806156383}"), "{\"cardNo\":\"[removed]\"}");
}

#[test]
fn this_payments_number_goes_in_every_spelling() {
    let base64 = data_encoding::BASE64.encode(format!("{{\"n\":\"{PAN}\"}}").as_bytes());
    let percent: String = PAN.bytes().map(|b| format!("%{b:02x}")).collect();
    let hex = data_encoding::HEXUPPER.encode(PAN.as_bytes());
    for spelled in [
        PAN.to_owned(),
        format!("card {PAN} declined"),
        "4117-3478-0615-6383".to_owned(),
        "4117 3478 0615 6383".to_owned(),
        "41 17 34 78 06 15 63 83".to_owned(),
        "4117.3478.0615.6383".to_owned(),
        "4117+3478+0615+6383".to_owned(),
        "4117%203478%200615%206383".to_owned(),
        format!("9{PAN}9"),
        percent,
        base64,
        hex,
    ] {
        for name in ["resultMessage", "networkTransactionId", "paymentId"] {
            let text = cleaned(&format!("{{\"{name}\":\"{spelled}\"}}"));
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            assert!(!digits.contains(PAN), "{name} {spelled}: {text}");
            assert!(text.contains('*') || text.contains(REMOVED), "{name} {spelled}: {text}");
        }
    }
    assert_eq!(cleaned(&format!("{{\"{PAN}\":1,\"a\":{PAN}}}")), "{\"a\":\"[removed]\"}");
}

#[test]
fn no_spelling_of_any_length_is_too_short_to_be_found() {
    for digits in ["500000000009", "4222222222222", "378282246310005", PAN, "6200000000000000000"] {
        let Ok(pan) = Pan::parse(digits) else { panic!("{digits}") };
        let own = Spellings::of(&pan);
        let codes: Vec<String> = digits.bytes().map(|byte| byte.to_string()).collect();
        let mut spelled =
            vec![digits.to_owned(), codes.join(","), data_encoding::HEXLOWER.encode(digits.as_bytes())];
        for (before, after) in [("", ""), ("x", ""), ("xy", ""), ("", "z"), ("x", "yz"), ("xy", "z")] {
            let whole = data_encoding::BASE64_NOPAD.encode(format!("{before}{digits}{after}").as_bytes());
            spelled.push(whole);
        }
        for text in spelled {
            assert!(own.stand_in(&text), "{text}");
            assert!(!own.stand_in(&text[..digits.len() - 2]), "{text}");
        }
    }
}

#[test]
fn any_number_of_a_brand_goes_but_ids_stay() {
    let other = scrub(
        r#"{"resultMessage":"4111 1111 1111 1111 x","paymentId":"20211112194010800100188570271832381","networkTransactionId":"378282246310005","rrn":"4111111111111111"}"#,
        Own::default(),
    );
    assert_eq!(
        other.as_deref(),
        Some(
            r#"{"resultMessage":"************1111 x","paymentId":"20211112194010800100188570271832381","networkTransactionId":"378282246310005","rrn":"4111111111111111"}"#
        )
    );
}

#[test]
fn the_cvv_goes_only_as_a_whole_string() {
    let text = r#"{"paymentAmount":{"value":"85000","currency":"EUR"},"x":"850","y":"8500","z":850000,"cvvResultRaw":"Y"}"#;
    assert_eq!(cleaned(text), text.replace("\"850\"", "\"[removed]\""));
    let sum = r#"{"paymentAmount":{"currency":"EUR","value":"850"}}"#;
    assert_eq!(cleaned(sum), sum);
}

#[test]
fn the_rest_stays_byte_for_byte() {
    let text = r#"{"a":[1.50,true,null,{"threeDSResult":{"eci":"02","dsTransactionId":"x"}}],"b":"é\n"}"#;
    assert_eq!(cleaned(text), text);
    for text in [r#"{"a":"{ \"b\" : 1 }"}"#, r#"{"a":"\u00e9 \/ é"}"#, r#"{"a":" [1, 2] "}"#] {
        assert_eq!(cleaned(text), text);
    }
    assert_eq!(scrub("{", Own::default()), None);
    assert_eq!(scrub(r#"{"a":1,"a":2}"#, Own::default()), None);
}

/// What becomes of one member. `-` is: taken out whole; `=` is: not touched.
type Row = (&'static str, &'static str, &'static str);

fn assert_rows(rows: &[Row], cleaned: impl Fn(&str) -> String) {
    for (name, value, expected) in rows {
        let member = |value: &str| serde_json::json!({ *name: value }).to_string();
        let expected = match *expected {
            "-" => REMOVED,
            "=" => value,
            other => other,
        };
        assert_eq!(cleaned(&member(value)), member(expected), "{name}: {value}");
    }
}

/// Names, in every spelling that they may come in.
#[test]
fn a_table_of_names() {
    let rows: &[Row] = &[
        ("cvv", "7391", "-"),
        ("cvv2", "739", "-"),
        ("CVV_2", "739", "-"),
        ("cvc", "739", "-"),
        ("Cvc2", "739", "-"),
        ("cvn", "739", "-"),
        ("csc", "739", "-"),
        ("security-code", "739", "-"),
        ("Security Code", "739", "-"),
        ("cardSecurityCode", "739", "-"),
        ("cardVerificationValue", "739", "-"),
        ("verification_code", "739", "-"),
        ("cardCvv", "739", "-"),
        ("cardCVV", "739", "-"),
        ("payment.card.cvv", "739", "-"),
        ("card[cvv]", "739", "-"),
        ("c.v.v", "739", "-"),
        ("cv\u{200b}v", "739", "-"),
        ("\u{ff43}\u{ff56}\u{ff56}", "739", "-"),
        ("cavv", "AAABBEg0VhI0VniQEjRWAAAAAAA=", "-"),
        ("caav", "AAABBEg0VhI0VniQEjRWAAAAAAA=", "-"),
        ("threeDSCavv", "AAABBEg0VhI0VniQEjRWAAAAAAA=", "-"),
        ("ucaf", "AAABBEg0VhI0VniQEjRWAAAAAAA=", "-"),
        ("cardPasswordDigest", "12", "-"),
        ("card_password", "12", "-"),
        ("cardToken", "ALIPAYx8Vq", "-"),
        ("card_token", "ALIPAYx8Vq", "-"),
        ("cardNo", "9490220011669217", "************9217"),
        ("cardnumber", "9490 2200 1166 9217", "************9217"),
        ("payment.cardNo", "9490220011669217", "************9217"),
        ("buyerCardNo", "9490220011669217", "************9217"),
        ("primaryAccountNumber", "9490220011669217", "************9217"),
        ("PAN", "9490220011669217", "************9217"),
        ("cvvResultRaw", "739", "="),
        ("avsResultRaw", "A", "="),
        ("isCvvProvided", "739", "="),
        ("cardBrand", "VISA", "="),
        ("cardTokenExpiry", "2029", "="),
        ("japan", "9490220011669217", "="),
        ("cardholderName", "Tom Jay", "="),
        ("lastFour", "6383", "="),
        ("cardBin", "41173478", "="),
    ];
    assert_rows(rows, cleaned);
    assert_eq!(cleaned(r#"{"enableCvv":true,"cvv":false}"#), r#"{"enableCvv":true,"cvv":false}"#);
    assert_eq!(cleaned(r#"{"payment":{"card.cvv":[739]}}"#), r#"{"payment":{"card.cvv":"[removed]"}}"#);
}

/// A masked number is one that shows at most BIN and last four, and nothing else.
#[test]
fn a_table_of_masked_numbers() {
    let rows: &[Row] = &[
        ("cardNo", "************6383", "="),
        ("cardNo", "411734******6383", "="),
        ("cardNo", "4117 34** **** 6383", "="),
        ("cardNo", "xxxx-xxxx-xxxx-6383", "="),
        ("cardNo", "XXXXXXXXXXXX6383", "="),
        ("cardNo", "411734\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}6383", "="),
        ("cardNo", "############6383", "="),
        ("cardNo", "6383", "="),
        ("maskedCardNo", "4117****6383", "="),
        ("cardNo", "41173478****6383", "411734******6383"),
        ("cardNo", "41173478061563**", "-"),
        ("cardNo", "4117347806*56383", "-"),
        ("cardNo", "850", "-"),
        // The letters of base64 are no mask.
        ("cardNo", "NDExNzM0NzgwNjE1NjM4Mw==", "-"),
        ("cardNo", "x cvv=850 6383", "-"),
        ("resultMessage", "card 411734******6383 declined", "="),
        ("echo", "************6383", "="),
        ("echo", "VISA 411734XXXXXX6383 12/29", "="),
    ];
    assert_rows(rows, cleaned);
}

/// This payment's own number, under names that say nothing.
#[test]
fn a_table_of_spellings_of_the_own_number() {
    let base64 = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    let each =
        |form: &dyn Fn(u8) -> String, between: &str| PAN.bytes().map(form).collect::<Vec<_>>().join(between);
    let mut wrapped = base64(&format!("{{\"number\":\"{PAN}\"}}"));
    wrapped.insert_str(20, "\r\n");
    let arabic = PAN.chars().map(|c| char::from_u32(u32::from(c) - 0x30 + 0x660).expect("a digit"));
    let wide = PAN.chars().map(|c| char::from_u32(u32::from(c) - 0x30 + 0xff10).expect("a digit"));
    for spelled in [
        PAN.to_owned(),
        format!("{PAN} 12/29 850"),
        format!("12 {PAN}"),
        format!("0000{PAN}0000"),
        "4117 3478 0615 6383".to_owned(),
        "4117\t3478\n0615\r6383".to_owned(),
        "4117\u{a0}3478\u{2009}0615\u{202f}6383".to_owned(),
        "4117/3478/0615/6383".to_owned(),
        "4117, 3478, 0615, 6383".to_owned(),
        "4-1-1-7-3-4-7-8-0-6-1-5-6-3-8-3".to_owned(),
        "4117 (3478) 0615 (6383)".to_owned(),
        "4117\u{200b}3478\u{200b}0615\u{200b}6383".to_owned(),
        arabic.collect(),
        wide.collect(),
        "4117+3478+0615+6383".to_owned(),
        "4117%203478%200615%206383".to_owned(),
        "%ff4117%203478%200615%206383".to_owned(),
        each(&|byte| format!("%{byte:02X}"), ""),
        each(&|byte| format!("%25{byte:02X}"), ""),
        each(&|byte| format!("\\x{byte:02x}"), ""),
        each(&|byte| format!("\\u{byte:04x}"), ""),
        each(&|byte| format!("&#{byte};"), ""),
        each(&|byte| format!("&#x{byte:x};"), ""),
        each(&|byte| format!("{byte:02x}"), " "),
        each(&|byte| format!("{byte:02X}"), ""),
        each(&|byte| format!("{byte}"), ", "),
        base64(PAN),
        base64(&format!("a{PAN}")),
        base64(&format!("ab{PAN}c")),
        format!("see {} there", base64(&format!("abc{PAN}"))),
        base64(&base64(PAN)),
        base64("4117 3478 0615 6383"),
        data_encoding::BASE64URL_NOPAD.encode("{\"\u{ff}?\":\"4117-3478-0615-6383\"}".as_bytes()),
        wrapped,
        format!("{{\"a\":[\"{}\"]}}", base64(PAN)),
        format!("https://a.example/?n={PAN}"),
    ] {
        let (pan, text) = (Pan::parse(PAN).expect("a PAN"), |text: &str| text.to_owned());
        for name in ["resultMessage", "networkTransactionId", "normalUrl", "buyerPhoneNo", "value"] {
            let own = Own { pan: Some(&pan), ..Own::default() };
            let told =
                scrub(&serde_json::json!({ name: spelled }).to_string(), own).map_or(text(""), |it| it);
            let whole = serde_json::json!({ name: REMOVED }).to_string();
            let masked = told.contains("************6383") && !told.contains("4117");
            let inside = told.contains("[\\\"[removed]\\\"]");
            assert!(told == whole || masked || inside, "{name} {spelled}: {told}");
        }
    }
    for pieces in [
        r#"["4117","3478","0615","6383"]"#.to_owned(),
        r#"[4117,3478,"0615",6383]"#.to_owned(),
        format!("[{}]", each(&|byte| byte.to_string(), ",")),
        format!("[{}]", each(&|byte| (byte - b'0').to_string(), ",")),
        "4.117347806156383e15".to_owned(),
        "4117347806156383".to_owned(),
        "-4117347806156383".to_owned(),
    ] {
        for name in ["a", "paymentId", "value"] {
            let text = cleaned(&format!("{{\"{name}\":{pieces}}}"));
            assert_eq!(text, format!("{{\"{name}\":\"[removed]\"}}"), "{pieces}");
        }
    }
    assert_eq!(cleaned(r#"["4117347806156383","x"]"#), r#"["************6383","x"]"#);
}

/// The CVV, and card data that stands behind its name in a text that is not JSON.
#[test]
fn a_table_of_values_in_texts() {
    let rows: &[Row] = &[
        ("a", "850", "-"),
        ("a", " 850 ", "-"),
        ("a", "%38%35%30", "-"),
        ("a", "ODUw", "-"),
        ("a", "\u{ff18}\u{ff15}\u{ff10}", "-"),
        ("paymentId", "850", "-"),
        ("a", "cvv=850", "cvv=[removed]"),
        ("a", "cvv=739&amount=73900", "cvv=[removed]&amount=73900"),
        ("a", "CVV: 739, zip 73901", "CVV: [removed], zip 73901"),
        ("a", "cvv739", "cvv[removed]"),
        ("a", "cvv 739 is wrong", "cvv [removed] is wrong"),
        ("a", "security code: 7391", "security code: [removed]"),
        ("a", "<cvc2>739</cvc2>", "<cvc2>[removed]</cvc2>"),
        ("a", "{\"cvv\":\"739\",\"cvv\":\"739\"}", "{\"cvv\":\"[removed]\",\"cvv\":\"[removed]\"}"),
        ("a", "request {\"cvv\":\"739\"}", "request {\"cvv\":\"[removed]\"}"),
        ("a", "{\"b\":{\"c\":[{\"cardCvv\":739}]}}", "{\"b\":{\"c\":[{\"cardCvv\":\"[removed]\"}]}}"),
        ("a", "%7B%22cvv%22%3A%22739%22%7D", "-"),
        ("a", "eyJjdnYiOiI3MzkifQ==", "-"),
        ("a", "eyJhbGciOiJub25lIn0.eyJjdnYiOiI3MzkifQ.c2ln", "-"),
        ("a", "7b22637676223a22373339227d", "-"),
        ("a", "cavv=AAABBEg0VhI0VniQEjRWAAAAAAA=;eci=05", "cavv=[removed];eci=05"),
        ("a", "cardToken=ALIPAYx8Vq0001&x=1", "cardToken=[removed]&x=1"),
        ("a", "cardNo=9490220011669217&x=1", "cardNo=************9217&x=1"),
        ("a", "cardNo: 9490-2200-1166-9217.", "cardNo: ************9217."),
        ("a", "cvv mismatch", "="),
        ("a", "CVV: not matched (N)", "="),
        ("a", "cvv checked in 2026", "="),
        ("a", "cvv=85000", "="),
        ("a", "cavv=absent", "="),
        ("a", "the CVV was given; it took 850 ms", "="),
        ("a", "order 850 of 8500", "="),
        ("a", "850.00", "="),
        ("a", "0850", "="),
    ];
    assert_rows(rows, cleaned);
}

/// A card number that is not this payment's, by its range and check digit.
#[test]
fn a_table_of_other_numbers() {
    let other = |text: &str| scrub(text, Own::default()).expect("JSON");
    let rows: &[Row] = &[
        ("a", "4111111111111111", "************1111"),
        ("a", "4111 1111 1111 1111 12/29", "************1111 12/29"),
        ("a", "4111111111111111 850", "************1111 850"),
        ("a", "4111.1111.1111.1111", "************1111"),
        ("a", "378282246310005 or 3782 822463 10005", "***********0005 or ***********0005"),
        ("a", "\u{ff14}111111111111111", "-"),
        ("a", "NDExMTExMTExMTExMTExMQ==", "-"),
        ("a", "4111%201111%201111%201111", "-"),
        ("a", "[\"4111111111111111\"]", "[\"************1111\"]"),
        ("a", "4111111111111112", "="),
        ("a", "9490220011669217", "="),
        ("a", "20211112194010800100188570271832381", "="),
    ];
    assert_rows(rows, other);
}

/// Everything that is not card data, with this payment's number and CVV known.
#[test]
fn a_table_of_what_is_not_touched() {
    let rows: &[Row] = &[
        ("amount", "85000", "="),
        ("amount", "8500", "="),
        ("paymentId", "20211112194010800100188570271832381", "="),
        ("paymentRequestId", "PAY_20221114141714891", "="),
        ("paymentRequestId", "4111111111111111", "="),
        ("referenceOrderId", "4111111111111111", "="),
        ("reference_order_id", "5019717010103742", "="),
        ("networkTransactionId", "378282246310005", "="),
        ("transactionLinkId", "4111111111111111xxxxxx", "="),
        ("rrn", "639171234565", "="),
        ("acquirerReferenceNo", "5019717010103742", "="),
        ("traceId", "0a1b2c3d4e5f60718293a4b5c6d7e8f9", "="),
        ("fingerprint", "4111111111111111aabbccddeeff00112233445566778899aabbccddeeff0011", "="),
        ("a", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "="),
        ("paymentTime", "2026-11-24T15:41:35+01:00", "="),
        ("a", "2026-11-24 15:41:35.040850", "="),
        ("a", "20261124154135040850", "="),
        ("a", "1764000850000", "="),
        ("a", "1764000850000850", "="),
        ("buyerPhoneNo", "639171234565", "="),
        ("phone", "63 917 123 4565", "="),
        ("a", "+639171234565", "="),
        ("a", "+63 917 123 4565", "="),
        ("a", "call +65 8500 8500 now", "="),
        ("a", "(850) 555-0850", "="),
        ("a", "0049 151 85085085", "="),
        ("zipCode", "310000", "="),
        ("ip", "112.80.248.78", "="),
        ("exchangeRate", "5.019717010103742", "="),
        ("normalUrl", "https://a.example/pages/4111111111111111?x=850", "="),
        ("normalUrl", "https://a.example/pages?cid=GA1.2.1234567890&token=AbC123dEf456", "="),
        ("resultMessage", "success.", "="),
        ("authorizationCode", "850850", "="),
        ("eci", "05", "="),
        ("cardBrand", "MASTERCARD", "="),
        ("deviceId", "eYOIkvFpZzztgO0Yu6USdprBQZCWxDhiUAHCiK8K/cH9mT6wMaMOzAKe", "="),
        ("note", "Cappuccino #grande (Mika's coffee shop)", "="),
        ("note", "50% off, 100%25", "="),
        ("json", "{ \"paymentId\" : \"4111111111111111\" }", "="),
        ("empty", "", "="),
    ];
    assert_rows(rows, cleaned);
    for text in [
        r#"{"paymentAmount":{"currency":"EUR","value":"85000"}}"#,
        r#"{"paymentAmount":{"value":"850","currency":"EUR"}}"#,
        r#"{"paymentAmount":{"currency":"VND","value":"639171234565"}}"#,
        r#"{"installmentNum":850,"a":[850,850.0,8.5e2,-850],"b":true}"#,
        r#"{"paymentId":4111111111111111}"#,
    ] {
        assert_eq!(cleaned(text), text);
    }
    // Beside the sum, not in it.
    assert_eq!(
        cleaned(r#"{"currency":"EUR","value":"850","code":"850"}"#),
        r#"{"currency":"EUR","value":"850","code":"[removed]"}"#
    );
}

/// However deep an encoding is inside another one, it is looked through or taken out.
#[test]
fn many_layers_hide_nothing() {
    let mut text = r#"{"cvv":"739"}"#.to_owned();
    for layer in 1..14 {
        text = serde_json::json!({ "a": text }).to_string();
        let told = scrub(&text, Own::default()).expect("JSON");
        assert!(!told.contains("739"), "{layer}: {told}");
    }
}

#[test]
fn a_token_becomes_a_reference() {
    let text = r#"{"paymentResultInfo":{"cardToken":"ALIPAYtoken1"},"x":"see ALIPAYtoken1"}"#;
    let token = card_token(text).expect("a token");
    assert_eq!(token.expose(), "ALIPAYtoken1");
    let card = CardId::make().expect("entropy");
    let own = Own { token: Some(&token), token_card: Some(&card), ..Own::default() };
    let once = scrub(text, own).expect("JSON");
    assert_eq!(once, text.replace("ALIPAYtoken1", card.as_str()));
    // What was taken out in a first pass gets its reference in a second.
    let removed = scrub(text, Own { token: Some(&token), ..Own::default() }).expect("JSON");
    assert!(!removed.contains("ALIPAYtoken1") && removed.contains(REMOVED));
    let again = scrub(&removed, own).expect("JSON");
    assert!(again.contains(&format!("\"cardToken\":\"{card}\"")), "{again}");
    let older = card_token(r#"{"cardInfo":{"cardToken":"t"}}"#);
    assert_eq!(older.map(|token| token.expose().to_owned()).as_deref(), Some("t"));
    assert!(card_token(r#"{"cardToken":"t"}"#).is_none() && card_token("x").is_none());
}
