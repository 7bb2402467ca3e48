//! The patches by which `scripts/sabotage` spoils the program fit it as it is.

use std::path::Path;

#[test]
fn every_patch_fits_the_program_and_names_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(root.join("tests/sabotage")).expect("the patches") {
        let path = entry.expect("a patch").path();
        let patch = std::fs::read_to_string(&path).expect("a patch");
        let shown = path.display();
        assert!(patch.starts_with("Spoilt: ") && patch.contains("\nTest: "), "{shown}");
        let (mut text, mut before, mut hunks) = (String::new(), String::new(), 0);
        let mut fits = |text: &str, before: &mut String| {
            assert!(
                before.is_empty() || text.contains(before.as_str()),
                "{shown}: not there any more:\n{before}"
            );
            hunks += usize::from(!std::mem::take(before).is_empty());
        };
        for line in patch.lines() {
            if let Some(file) = line.strip_prefix("--- a/") {
                fits(&text, &mut before);
                text = std::fs::read_to_string(root.join(file)).expect("a file of the program");
            } else if line.starts_with("@@ ") {
                fits(&text, &mut before);
            } else if let (false, Some(old)) = (
                line.starts_with("---") || text.is_empty(),
                line.strip_prefix(' ').or_else(|| line.strip_prefix('-')),
            ) {
                before.push_str(old);
                before.push('\n');
            }
        }
        fits(&text, &mut before);
        assert!(hunks > 0, "{shown} changes nothing");
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
}
