//! A folder with recording programs in place of real ones, and launches kept in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::root;

/// The folder. What the programs keep is in `fake`, the programs are in `bin`, launches in `state`.
pub struct Rig(tempfile::TempDir);

impl Rig {
    /// With these programs of tests/fixtures/apply, and these files for them.
    pub fn new(tools: &[&str], files: &[(&str, &str)]) -> Self {
        let rig = Rig(tempfile::tempdir().expect("a folder"));
        ["fake", "bin"].into_iter().for_each(|name| std::fs::create_dir(rig.path(name)).expect("a folder"));
        for tool in tools {
            let fake = root().join("tests/fixtures/apply").join(tool);
            std::os::unix::fs::symlink(fake, rig.path("bin").join(tool)).expect("a link");
        }
        files.iter().for_each(|(name, text)| rig.put(name, text));
        rig
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path("fake").join(name), text).expect("a file");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("fake").join(name)).unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        self.path("fake").join(name).exists()
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path("fake").join(name)).expect("a file");
    }

    /// A file of a launch.
    pub fn state(&self, launch: &str, name: &str) -> PathBuf {
        self.path("state/launches").join(launch).join(name)
    }

    pub fn record(&self, launch: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.state(launch, "launch.json")).expect("a record")).expect("JSON")
    }

    /// gemma4ctl with these programs, which asks clouds without resting.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = super::command(self.folder(), arguments);
        command
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .env("FAKE", self.path("fake"))
            .env("GEMMA4CTL_STATE_DIR", self.path("state"))
            .env("GEMMA4CTL_POLL_SECONDS", "0.01");
        command
    }

    /// What was called: the program and its arguments.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = self.read("calls");
        text.lines().map(|line| line.trim_end_matches('\u{1f}').split('\u{1f}').map(str::to_owned).collect()).collect()
    }

    /// The same, and forgets it.
    pub fn take_calls(&self) -> Vec<Vec<String>> {
        let calls = self.calls();
        let _ = std::fs::remove_file(self.path("fake/calls"));
        calls
    }
}
