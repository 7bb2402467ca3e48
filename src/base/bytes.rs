//! LP, the one length-prefixed encoding that all additional data, key-derivation infos and MAC inputs
//! use: each part is its length as a big-endian `u32`, then its bytes. Two different lists of parts
//! never encode to the same bytes, so no part can be shifted into its neighbour.

/// Encodes `parts` as LP.
pub fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        // A part is at most a request body (64 KiB); saturating keeps the encoding total.
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Reads LP back. `None` where a length does not fit, or bytes are left over.
pub fn split_length_prefixed(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (part, rest) = rest.split_at_checked(length)?;
        parts.push(part);
        bytes = rest;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(length_prefixed(&[b"ab", b"c"]), length_prefixed(&[b"a", b"bc"]));
        assert_ne!(length_prefixed(&[b"ab"]), length_prefixed(&[b"ab", b""]));
        assert_eq!(length_prefixed(&[b"ab"]), [0, 0, 0, 2, b'a', b'b']);
    }

    #[test]
    fn what_was_joined_splits_again_and_the_rest_does_not() {
        let joined = length_prefixed(&[b"", b"abc", b"\0\0"]);
        assert_eq!(split_length_prefixed(&joined), Some(vec![&b""[..], b"abc", b"\0\0"]));
        assert_eq!(split_length_prefixed(&joined[..joined.len() - 1]), None);
        assert_eq!(split_length_prefixed(&[0, 0, 0]), None);
        assert_eq!(split_length_prefixed(&[0, 0, 0, 9, 1]), None);
    }
}
