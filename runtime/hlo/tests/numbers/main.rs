//! Every operation, run by XLA's CPU plugin, against numbers worked out by hand or by plain loops.
//!
//! The plugin is the one that `GEMMA4CTL_PJRT_CPU` names or `cargo run -p gemma4-pjrt --example install-cpu` installed.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test as tests do")]

mod arithmetic;
mod cases;
mod control;
mod custom;
mod devices;
mod indexing;
mod reductions;
mod shaping;

use std::io::Write as _;

use cases::{Case, Data, Tensor};
use gemma4_hlo::Parallelism;
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Argument, Buffer, Client, CompileOptions, DeviceAssignment, Plugin, Value};

/// A client with four CPU devices, or a line that says why a test is skipped.
fn client() -> Option<Client> {
    let Some(found) = install::find(Target::Cpu).unwrap() else {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        // Written past the test harness, which keeps what passing tests print to itself.
        let why = "no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`";
        let mut stderr = std::io::stderr();
        writeln!(stderr, "\nskipped: {why}").unwrap();
        return None;
    };
    let plugin = Plugin::load(&found.path).unwrap();
    Some(plugin.client(&[("cpu_device_count", Value::Int(4))]).unwrap())
}

fn options(parallelism: Parallelism) -> CompileOptions {
    match parallelism {
        Parallelism::Single => CompileOptions::default(),
        Parallelism::Replicas(count) => {
            let devices = (0..i64::from(count)).map(|device| vec![device]).collect();
            let device_assignment = Some(DeviceAssignment { devices });
            CompileOptions { num_replicas: count as usize, device_assignment, ..CompileOptions::default() }
        }
        Parallelism::ManualPartitions(count) => CompileOptions::manual_spmd(&(0..i64::from(count)).collect::<Vec<_>>()),
    }
}

fn buffer(client: &Client, tensor: &Tensor, device: usize) -> Buffer {
    let dims: Vec<i64> = tensor.dims.iter().map(|size| size.cast_signed()).collect();
    match &tensor.data {
        Data::F32(values) => client.buffer_of(values, &dims, device).unwrap(),
        Data::S32(values) => client.buffer_of(values, &dims, device).unwrap(),
    }
}

fn check(client: &Client, case: &Case, text: &str) {
    let program = client.compile(text.as_bytes(), &options(case.module.parallelism()));
    let program = program.unwrap_or_else(|error| panic!("{}: {error}\n{text}", case.name));
    // The parameters of all programs on several devices are donated, those of the others are not.
    let donated = case.inputs.len() > 1;
    let buffers: Vec<Vec<Buffer>> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(device, inputs)| inputs.iter().map(|tensor| buffer(client, tensor, device)).collect())
        .collect();
    let outputs = if donated {
        program.execute(buffers.into_iter().map(|all| all.into_iter().map(Argument::Donate).collect()).collect())
    } else {
        program.execute(buffers.iter().map(|all| all.iter().map(Argument::Keep).collect()).collect())
    };
    let outputs = outputs.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    assert_eq!(outputs.len(), case.expected.len(), "{}: devices", case.name);
    for (device, (outputs, expected)) in outputs.iter().zip(&case.expected).enumerate() {
        assert_eq!(outputs.len(), expected.len(), "{}: outputs", case.name);
        for (index, (output, expected)) in outputs.iter().zip(expected).enumerate() {
            let found = output.to_vec::<f32>().unwrap();
            let near = |(found, wanted): (&f32, &f32)| {
                found == wanted || (found - wanted).abs() <= case.tolerance * wanted.abs().max(1.0)
            };
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(near),
                "{}, device {device}, output {index}: {found:?} instead of {expected:?}\n{text}",
                case.name
            );
        }
    }
}

#[test]
fn programs_on_one_device_give_the_right_numbers() {
    let Some(client) = client() else { return };
    for case in cases::all() {
        check(&client, &case, &case.module.text());
        check(&client, &case, &case.module.canonical());
    }
}

#[test]
fn programs_on_four_devices_give_the_right_numbers() {
    let Some(client) = client() else { return };
    for case in devices::all() {
        check(&client, &case, &case.module.text());
        check(&client, &case, &case.module.canonical());
    }
}

#[test]
fn scopes_and_parameter_names_reach_the_compiled_program() {
    let Some(client) = client() else { return };
    let cases = devices::all();
    let case = cases.iter().find(|case| case.name == "manual_bodies").unwrap();
    let program = client.compile(case.module.text().as_bytes(), &options(case.module.parallelism())).unwrap();
    let (_, bytes) = program.executable().optimized_program().unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for name in ["loop/sum", "input.0"] {
        assert!(text.contains(name), "{name} is missing");
    }
}
