//! The TPU compiler without a TPU. Runs where its plugin is installed, which takes 205 MB, so not in CI.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers and the lines that say what is skipped")]

use std::process::Command;

use gemma4_pjrt::environment::{QUIET, TPU_COMPILE_ONLY};
use gemma4_pjrt::install::{Target, find};
use gemma4_pjrt::{CompileOptions, HbmExceeded, Plugin, StatusCode};

/// Runs a test again in a process whose environment the plugin needs; tells whether this is that process.
fn in_own_process(name: &str) -> bool {
    if find(Target::Tpu).unwrap().is_none() {
        println!("skipped: no TPU plugin; name one in {}", Target::Tpu.variable());
        return false;
    }
    if std::env::var_os(TPU_COMPILE_ONLY[0].0).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).envs([QUIET]).envs(TPU_COMPILE_ONLY);
    let output = command.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

fn plugin() -> Plugin {
    Plugin::load(&find(Target::Tpu).unwrap().unwrap().path).unwrap()
}

#[test]
fn a_program_is_compiled_for_four_chips_that_are_not_there() {
    if !in_own_process("a_program_is_compiled_for_four_chips_that_are_not_there") {
        return;
    }
    let topology = plugin().topology("v6e:2x2", &[]).unwrap();
    let devices = topology.devices().unwrap();
    assert_eq!(devices.len(), 4);
    println!(
        "{} {:?} {:?}",
        topology.platform_name().unwrap(),
        topology.serialize().map(|bytes| bytes.len()),
        devices[0]
    );
    let ids: Vec<i64> = devices.iter().map(|device| device.id.into()).collect();
    let program = r#"
func.func public @main(%x: tensor<1024x1024xbf16> {mhlo.sharding = "{manual}", tf.aliasing_output = 0 : i32})
    -> (tensor<1024x1024xbf16> {mhlo.sharding = "{manual}"}) {
  %z = "stablehlo.all_reduce"(%x) <{
    replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>,
    channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>,
    use_global_device_ids
  }> ({
  ^bb0(%l: tensor<bf16>, %r: tensor<bf16>):
    %s = stablehlo.add %l, %r {mhlo.sharding = "{manual}"} : tensor<bf16>
    stablehlo.return %s {mhlo.sharding = "{manual}"} : tensor<bf16>
  }) {mhlo.sharding = "{manual}"} : (tensor<1024x1024xbf16>) -> tensor<1024x1024xbf16>
  return %z : tensor<1024x1024xbf16>
}"#;
    let executable = topology.compile(program.as_bytes(), &CompileOptions::manual_spmd(&ids)).unwrap();
    let stats = executable.memory_stats().unwrap();
    println!("{stats:?} {:?}", executable.cost_analysis());
    let matrix = 2 * 1024 * 1024;
    assert_eq!((stats.arguments, stats.outputs, stats.aliased), (matrix, matrix, matrix));
    assert_eq!(executable.outputs().unwrap()[0].dims, [1024, 1024]);
    assert!(executable.serialize().unwrap().len() > 1000);
    println!("{:?}", executable.optimized_program().map(|(format, code)| (format, code.len())));
}

#[test]
fn a_program_that_is_too_large_says_so_in_bytes() {
    if !in_own_process("a_program_that_is_too_large_says_so_in_bytes") {
        return;
    }
    let topology = plugin().topology("v6e:1x1", &[]).unwrap();
    let program = "func.func public @main(%x: tensor<32x1073741824xi8>) -> tensor<32x1073741824xi8> {
  return %x : tensor<32x1073741824xi8>
}";
    let error = topology.compile(program.as_bytes(), &CompileOptions::default()).unwrap_err();
    println!("{error}");
    assert_eq!(error.code(), Some(StatusCode::ResourceExhausted));
    let HbmExceeded { needed, available } = error.hbm_exceeded().unwrap();
    assert!(needed.unwrap() >= 32 << 30, "{error}");
    assert!(available.is_some_and(|bytes| (30 << 30..32 << 30).contains(&bytes)), "{error}");
    // Names of devices that do not exist are refused in words.
    assert!(plugin().topology("v6e-4", &[]).is_err());
}
