//! Programs with calls, kept and loaded by another process.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "test helpers and the lines that say what is skipped")]

use std::path::Path;
use std::process::Command;

use gemma4_kernels::register;
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Argument, Client, CompileOptions, Plugin, Value};

const CHILD: &str = "GEMMA4_KERNELS_TEST_PROGRAM";

fn client() -> Option<Client> {
    let Some(found) = install::find(Target::Cpu).unwrap() else {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        eprintln!("\nskipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return None;
    };
    let plugin = Plugin::load(&found.path).unwrap();
    register(plugin).unwrap();
    // A second time is no error.
    register(plugin).unwrap();
    Some(plugin.client(&[("cpu_device_count", Value::Int(1))]).unwrap())
}

fn program() -> String {
    format!(
        "func.func public @main(%x: tensor<2x3xf32>, %w: tensor<2x3xf32>) -> tensor<2x2xf32> {{
  %rows = stablehlo.constant dense<2> : tensor<i32>
  %y = stablehlo.custom_call @{}(%x, %w, %rows) {{api_version = 4 : i32, backend_config = {{}}}}
    : (tensor<2x3xf32>, tensor<2x3xf32>, tensor<i32>) -> tensor<2x2xf32>
  return %y : tensor<2x2xf32>
}}",
        gemma4_model::graph::LINEAR
    )
}

/// The same product with integers and scales.
fn quantized() -> String {
    program()
        .replace("%w: tensor<2x3xf32>", "%w: tensor<2x3xi8>, %s: tensor<2xf32>")
        .replace("(%x, %w,", "(%x, %w, %s,")
        .replace("(tensor<2x3xf32>, tensor<2x3xf32>,", "(tensor<2x3xf32>, tensor<2x3xi8>, tensor<2xf32>,")
}

fn run(client: &Client, program: &gemma4_pjrt::LoadedExecutable) {
    let x = client.buffer_of(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], 0).unwrap();
    let w = client.buffer_of(&[1.0_f32, 0.0, -1.0, 0.5, 0.5, 0.5], &[2, 3], 0).unwrap();
    let outputs = program.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&w)]]).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [-2.0, 3.0, -2.0, 7.5]);
}

#[test]
fn a_kept_program_runs_in_another_process() {
    let Some(client) = client() else { return };
    if let Some(path) = std::env::var_os(CHILD) {
        run(&client, &client.load(&std::fs::read(Path::new(&path)).unwrap()).unwrap());
        return;
    }
    let program = client.compile(program().as_bytes(), &CompileOptions::default()).unwrap();
    run(&client, &program);
    let folder = std::env::temp_dir().join(format!("gemma4-kernels-{}", std::process::id()));
    std::fs::write(&folder, program.executable().serialize().unwrap()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap()).env(CHILD, &folder).output().unwrap();
    std::fs::remove_file(&folder).unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
fn shapes_that_do_not_fit_fail_the_step() {
    let Some(client) = client() else { return };
    let text = program()
        .replace("%w: tensor<2x3xf32>", "%w: tensor<3x2xf32>")
        .replace("(tensor<2x3xf32>, tensor<2x3xf32>,", "(tensor<2x3xf32>, tensor<3x2xf32>,");
    let program = client.compile(text.as_bytes(), &CompileOptions::default()).unwrap();
    let x = client.buffer_of(&[1.0_f32; 6], &[2, 3], 0).unwrap();
    let w = client.buffer_of(&[1.0_f32; 6], &[3, 2], 0).unwrap();
    let error = program.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&w)]]).unwrap_err();
    assert!(error.to_string().contains("do not go with weights"), "{error}");
}

#[test]
fn rows_that_are_not_real_become_zeros() {
    let Some(client) = client() else { return };
    let x = client.buffer_of(&[1.0_f32, 2.0, 3.0, f32::NAN, 5.0, 6.0], &[2, 3], 0).unwrap();
    let w = client.buffer_of(&[1.0_f32, 0.0, -1.0, 0.5, 0.5, 0.5], &[2, 3], 0).unwrap();
    let run = |real: &str| {
        let text = program().replace("dense<2>", &format!("dense<{real}>"));
        let program = client.compile(text.as_bytes(), &CompileOptions::default()).unwrap();
        let outputs = program.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&w)]]);
        outputs.map(|outputs| outputs[0][0].to_vec::<f32>().unwrap())
    };
    assert_eq!(run("1").unwrap(), [-2.0, 3.0, 0.0, 0.0]);
    assert_eq!(run("0").unwrap(), [0.0; 4]);
    // More than there are is all of them.
    let all = run("9").unwrap();
    assert_eq!(all[..2], [-2.0, 3.0]);
    assert!(all[2..].iter().all(|number| number.is_nan()), "{all:?}");
    assert!(run("-1").unwrap_err().to_string().contains("-1 is not a count"));
}

#[test]
fn integers_come_with_their_scales() {
    let Some(client) = client() else { return };
    let program = client.compile(quantized().as_bytes(), &CompileOptions::default()).unwrap();
    let x = client.buffer_of(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], 0).unwrap();
    let w = client.buffer_of(&[2_i8, 0, -2, 127, 127, 127], &[2, 3], 0).unwrap();
    let scales = client.buffer_of(&[0.5_f32, 2.0], &[2], 0).unwrap();
    let arguments = vec![vec![Argument::Keep(&x), Argument::Keep(&w), Argument::Keep(&scales)]];
    let outputs = program.execute(arguments).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [-2.0, 1524.0, -2.0, 3810.0]);

    let text = quantized().replace("tensor<2xf32>", "tensor<3xf32>");
    let program = client.compile(text.as_bytes(), &CompileOptions::default()).unwrap();
    let scales = client.buffer_of(&[0.5_f32, 2.0, 1.0], &[3], 0).unwrap();
    let arguments = vec![vec![Argument::Keep(&x), Argument::Keep(&w), Argument::Keep(&scales)]];
    let error = program.execute(arguments).unwrap_err();
    assert!(error.to_string().contains("do not go with weights"), "{error}");
}

/// A product with words and the scales of groups, in which the first row is ones and the second one -8, each times its scale.
#[test]
fn words_come_with_the_scales_of_groups() {
    let Some(client) = client() else { return };
    let of = |scales: &str| {
        program()
            .replace("%x: tensor<2x3xf32>", "%x: tensor<2x64xf32>")
            .replace("%w: tensor<2x3xf32>", &format!("%w: tensor<2x32xui16>, %s: tensor<{scales}xbf16>"))
            .replace("(%x, %w,", "(%x, %w, %s,")
            .replace(
                "(tensor<2x3xf32>, tensor<2x3xf32>,",
                &format!("(tensor<2x64xf32>, tensor<2x32xui16>, tensor<{scales}xbf16>,"),
            )
    };
    let x = client.buffer_of(&[1.0_f32; 128], &[2, 64], 0).unwrap();
    let words = [[0x11_u16; 32], [0x88; 32]].concat();
    let w = client.buffer_of(&words, &[2, 32], 0).unwrap();
    for (shape, dims, fits) in [("2x2", [2, 2], true), ("2x5", [2, 5], false), ("1x2", [1, 2], false)] {
        let program = client.compile(of(shape).as_bytes(), &CompileOptions::default()).unwrap();
        let scales = [0.5_f32, 2.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].map(half::bf16::from_f32);
        let count = usize::try_from(dims[0] * dims[1]).unwrap();
        let scales = client.buffer_of(&scales[..count], &dims, 0).unwrap();
        let outputs = program.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&w), Argument::Keep(&scales)]]);
        match outputs {
            Ok(outputs) if fits => assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [80.0, 0.0, 80.0, 0.0]),
            Err(error) if !fits => assert!(error.to_string().contains("do not go with weights"), "{error}"),
            other => panic!("{shape}: {:?}", other.is_ok()),
        }
    }
}
