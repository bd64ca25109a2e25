//! The fuzz targets on inputs that are known: the seeds, and whatever fuzzing has found.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a crate of its own to the fuzzer")]
mod targets;

use std::fs;
use std::path::Path;

/// A target's name, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

#[test]
fn what_is_known_to_be_hard_is_taken_or_refused() {
    let targets: [Target; 8] = [
        ("url", targets::url),
        ("headers", targets::headers),
        ("pattern", targets::pattern),
        ("filter", targets::filter),
        ("retry_after", targets::retry_after),
        ("tokens", targets::tokens),
        ("ciphertext", targets::ciphertext),
        ("messages", targets::messages),
    ];
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, check) in targets {
        assert!(fuzz.join(format!("targets/{name}.rs")).exists(), "{name} is a target");
        let seeds: Vec<_> = fs::read_dir(fuzz.join("seeds").join(name)).expect("seeds").collect();
        assert!(seeds.len() >= 3, "{name} has seeds");
        for seed in seeds {
            let path = seed.expect("a seed").path();
            let bytes = fs::read(&path).expect("readable");
            // Whole, and cut off and changed as somebody in a hurry would.
            check(&bytes);
            for place in 0..bytes.len().min(512) {
                check(&bytes[..place]);
                let mut changed = bytes.clone();
                changed[place] ^= 0x20;
                check(&changed);
            }
        }
    }
    let listed = fs::read_dir(fuzz.join("targets")).expect("targets").count();
    assert_eq!(listed, targets.len(), "every target is tried here");
}
