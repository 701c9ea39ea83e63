//! The fixtures of the repository root are complete and unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

#[derive(serde::Deserialize)]
struct Manifest {
    sha256: BTreeMap<String, String>,
}

#[test]
fn every_file_has_the_hash_of_the_manifest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gemma4");
    let manifest = std::fs::read(root.join("manifest.json")).expect("the manifest");
    let manifest: Manifest = serde_json::from_slice(&manifest).expect("JSON");
    assert!(manifest.sha256.len() > 70);
    for (file, expected) in manifest.sha256 {
        let bytes = std::fs::read(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let found: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, expected, "{file}");
    }
}
