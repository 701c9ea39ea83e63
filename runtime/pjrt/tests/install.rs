//! Installing plugins, with a `pip` that records what it is asked for and does what the test wants.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers and the lines that say what is skipped")]
#![cfg(target_os = "linux")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gemma4_pjrt::install::{Found, InstallError, Installer, Lock, Origin, Progress, State, Target};
use sha2::{Digest as _, Sha256};

const LIBRARY: &str = "plugin/library.so";
const WHEEL: &str = "fake-1.0-py3-none-any.whl";

/// A folder with data, programs and a wheel.
struct World {
    folder: tempfile::TempDir,
    wheel: Vec<u8>,
    sha256: String,
}

impl World {
    fn new() -> Self {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for (name, content) in [("plugin/other.so", &b"not this"[..]), (LIBRARY, &[7; 100_000])] {
            writer.start_file(name, options).unwrap();
            writer.write_all(content).unwrap();
        }
        World::with_wheel(writer.finish().unwrap().into_inner())
    }

    fn with_wheel(wheel: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::fs::write(folder.path().join(WHEEL), &wheel).unwrap();
        let sha256 = Sha256::digest(&wheel).iter().map(|byte| format!("{byte:02x}")).collect();
        World { folder, wheel, sha256 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a program on the search path, which holds nothing else.
    fn program(&self, name: &str, script: &str) {
        let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\n{script}\n");
        write_program(&self.path("bin").join(name), &script);
    }

    /// A pip that records its arguments and gives the wheel.
    fn good_pip(&self) {
        let (record, wheel) = (self.path("record"), self.path(WHEEL));
        self.program(
            "pip",
            &format!(
                "printf '%s\\n' \"$@\" > {}\nwhile [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n/bin/cp {} \"$dest/\"",
                record.display(),
                wheel.display()
            ),
        );
    }

    fn installer(&self) -> Installer {
        let wheel = format!(
            "architecture = '{}', platform = 'manylinux_9_9', python = '3.11', file = '{WHEEL}', bytes = {}, sha256 = '{}'",
            std::env::consts::ARCH,
            self.wheel.len(),
            self.sha256
        );
        let package = |target: &str, name: &str, wheels: &str| {
            format!(
                "[{target}]\npackage = '{name}'\nversion = '1.0'\nlibrary = '{LIBRARY}'\napi = '0.81'\nwheels = [{wheels}]\n"
            )
        };
        let here = format!("{{ {wheel} }}");
        let lock =
            package("cpu", "fake", &here) + &package("tpu", "fake-tpu", &here) + &package("cuda", "fake-cuda", "");
        Installer::new(&self.path("data"), Some(self.path("bin").into()), Lock::parse(&lock).unwrap())
    }

    fn install(&self) -> Result<Found, InstallError> {
        self.installer().install(Target::Cpu, &mut |_| {})
    }

    /// All files below the folder for plugins, but for the lock.
    fn files(&self) -> Vec<PathBuf> {
        let entries = walk(&self.path("data/plugins"));
        entries.into_iter().filter(|path| !path.ends_with(".lock")).collect()
    }
}

/// Puts a program at `path`. Another process writes it: a child that a test beside this one starts meanwhile would inherit a descriptor
/// that is open for writing, and as long as it holds it the kernel does not run the file.
fn write_program(path: &Path, script: &str) {
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(std::process::Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let below = |entry: std::fs::DirEntry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] };
    entries.map(Result::unwrap).flat_map(below).collect()
}

#[test]
fn a_wheel_is_fetched_checked_and_unpacked() {
    let world = World::new();
    world.good_pip();
    let mut news = Vec::new();
    let found = world.installer().install(Target::Cpu, &mut |progress| news.push(progress)).unwrap();
    assert_eq!(found.origin, Origin::Locked);
    assert_eq!(found.path, world.path("data/plugins/fake-1.0/library.so"));
    assert_eq!(std::fs::read(&found.path).unwrap(), [7; 100_000]);
    assert_eq!(std::fs::metadata(&found.path).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(world.files(), std::slice::from_ref(&found.path), "nothing else is left");
    assert!(matches!(&news[0], Progress::Command(command) if command.contains("fake==1.0")), "{news:?}");
    assert_eq!(news.last(), Some(&Progress::Unpack { bytes: 100_000, total: 100_000 }));
    assert_eq!(world.installer().find_installed(Target::Cpu), Some(found.clone()));

    let record = std::fs::read_to_string(world.path("record")).unwrap();
    let arguments: Vec<_> = record.lines().collect();
    assert_eq!(arguments[..4], ["download", "--no-deps", "--only-binary=:all:", "--no-input"]);
    let pairs = [["--platform", "manylinux_9_9"], ["--python-version", "3.11"], ["--progress-bar", "off"]];
    assert!(pairs.iter().all(|pair| arguments.windows(2).any(|window| window == pair)), "{arguments:?}");
    assert_eq!(arguments.last(), Some(&"fake==1.0"));

    // Installed is installed: pip is not asked again.
    std::fs::remove_file(world.path("record")).unwrap();
    assert_eq!(world.install().unwrap(), found);
    assert!(!world.path("record").exists());
}

#[test]
fn a_wheel_with_another_hash_is_not_installed() {
    let mut world = World::new();
    world.good_pip();
    world.sha256 = "0".repeat(64);
    let error = world.install().unwrap_err();
    assert!(matches!(error, InstallError::Hash { .. }));
    assert!(error.to_string().contains("nothing was installed"), "{error}");
    assert_eq!(world.files(), Vec::<PathBuf>::new());
}

#[test]
fn a_wheel_that_is_cut_off_leaves_nothing() {
    // Without its end a zip file has no directory; with a hole in its middle, the entry's checksum is wrong.
    let whole = World::new().wheel;
    let cut = whole[..whole.len() - 40].to_vec();
    let mut changed = whole.clone();
    let middle = whole.windows(LIBRARY.len()).position(|part| part == LIBRARY.as_bytes()).unwrap() + LIBRARY.len() + 20;
    changed[middle] ^= 0xff;
    for wheel in [cut, changed] {
        let world = World::with_wheel(wheel);
        world.good_pip();
        let error = world.install().unwrap_err();
        assert!(matches!(error, InstallError::Wheel { .. }), "{error}");
        assert!(error.to_string().contains(LIBRARY), "{error}");
        assert_eq!(world.files(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_writer_that_was_killed_does_not_stand_in_the_way() {
    let world = World::new();
    world.good_pip();
    let place = world.path("data/plugins/fake-1.0");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join(".unpack-killed"), "half").unwrap();
    assert_eq!(world.installer().find_installed(Target::Cpu), None);
    assert_eq!(std::fs::read(world.install().unwrap().path).unwrap().len(), 100_000);
}

#[test]
fn failures_of_pip_are_told_apart() {
    let fail = |lines: &str| {
        let world = World::new();
        world.program("pip", &format!("/bin/cat >&2 <<'END'\n{lines}\nEND\nexit 1"));
        let error = world.install().unwrap_err();
        assert_eq!(world.files(), Vec::<PathBuf>::new());
        error
    };
    // Both texts are pip 23.2's own.
    let offline = fail(
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object>: Failed to establish a new connection: [Errno 101] Network is unreachable')': /simple/fake/
ERROR: Could not find a version that satisfies the requirement fake==1.0 (from versions: none)
ERROR: No matching distribution found for fake==1.0",
    );
    assert!(matches!(offline, InstallError::Offline { .. }), "{offline}");
    let text = offline.to_string();
    for part in ["fake==1.0", "pip download", "Network is unreachable", "GEMMA4CTL_PJRT_CPU", "from that file"] {
        assert!(text.contains(part), "{text}");
    }
    let absent = fail(
        "ERROR: Could not find a version that satisfies the requirement fake==1.0 (from versions: none)
ERROR: No matching distribution found for fake==1.0",
    );
    assert!(matches!(absent, InstallError::NoPackage { .. }), "{absent}");
    assert!(absent.to_string().contains("has no fake==1.0 for manylinux_9_9"), "{absent}");
    let other = fail("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n");
    assert!(matches!(other, InstallError::Download { .. }), "{other}");
    assert!(other.to_string().contains("No space left on device"), "{other}");
}

#[test]
fn without_pip_and_without_a_wheel_for_the_machine_the_way_out_is_named() {
    let world = World::new();
    let error = world.install().unwrap_err();
    assert!(matches!(error, InstallError::NoPip { .. }), "{error}");
    world.good_pip();
    let error = world.installer().install(Target::Cuda, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("point GEMMA4CTL_PJRT_CUDA at a plugin"), "{error}");
}

#[test]
fn uv_is_asked_where_there_is_no_pip() {
    let world = World::new();
    world.good_pip();
    // `uv tool run --quiet pip ...`; the version is asked for in the same way.
    std::fs::rename(world.path("bin/pip"), world.path("bin/real")).unwrap();
    world.program("uv", "shift 4\nexec \"${0%/*}/real\" \"$@\"");
    assert_eq!(world.install().unwrap().origin, Origin::Locked);
}

#[test]
fn files_are_installed_on_the_users_word() {
    let world = World::new();
    let installer = world.installer();
    let locked = installer.install_from(Target::Cpu, &world.path(WHEEL), &mut |_| {}).unwrap();
    assert_eq!(locked.origin, Origin::Locked);
    let library = world.path("own.so");
    std::fs::write(&library, "own").unwrap();
    let own = installer.install_from(Target::Cpu, &library, &mut |_| {}).unwrap();
    assert_eq!((own.origin, std::fs::read(&own.path).unwrap()), (Origin::Local, b"own".to_vec()));
    assert_eq!(installer.find_installed(Target::Cpu), Some(own));
    let missing = installer.install_from(Target::Cpu, &world.path("nothing.whl"), &mut |_| {}).unwrap_err();
    assert!(matches!(missing, InstallError::File { .. }), "{missing}");
}

#[test]
fn many_at_once_install_once() {
    let world = World::new();
    world.good_pip();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(std::fs::read(world.install().unwrap().path).unwrap().len(), 100_000));
        }
    });
    assert_eq!(world.files().len(), 1);
}

#[test]
fn the_doctor_says_what_is_there_and_what_is_not() {
    let world = World::new();
    let probe = |_: Target, path: &Path| Err(format!("did not load {}", path.display()));
    if Target::ALL.iter().any(|target| std::env::var_os(target.variable()).is_some()) {
        println!("skipped: a variable points at a plugin, which the doctor would find");
        return;
    }
    world.installer().install_from(Target::Tpu, &world.path(WHEEL), &mut |_| {}).unwrap();
    let reports = world.installer().doctor(&probe);
    assert_eq!(reports.iter().map(|report| report.target).collect::<Vec<_>>(), Target::ALL);
    assert!(matches!(&reports[0].state, State::Missing { .. }));
    assert!(matches!(&reports[1].state, State::Found { api: Err(text), .. } if text.starts_with("did not load")));
    assert!(matches!(&reports[2].state, State::Unavailable(InstallError::Architecture { .. })));
}

#[test]
fn the_lock_file_is_whole() {
    let lock = Lock::built_in().unwrap();
    for target in Target::ALL {
        let package = lock.package(target);
        let (major, minor) = package.api.split_once('.').unwrap();
        assert_eq!(major, "0");
        assert!(minor.parse::<i32>().unwrap() >= gemma4_pjrt::OLDEST_API.minor);
        for wheel in &package.wheels {
            assert_eq!(wheel.sha256.len(), 64);
            assert!(wheel.sha256.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
            assert!(wheel.file.contains(&package.version) && wheel.file.contains(&wheel.platform), "{}", wheel.file);
        }
    }
    assert!(lock.package(Target::Cpu).wheels.len() == 2);
    assert!(Lock::parse("[cpu]\n").is_err());
}
