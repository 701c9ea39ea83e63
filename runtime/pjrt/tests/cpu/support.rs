//! The plugin, clients and small programs.

use std::path::PathBuf;

use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Client, CompileOptions, LoadedExecutable, Plugin, Value};

/// The CPU plugin's file, or a line that says why a test is skipped.
pub(crate) fn cpu_path() -> Option<PathBuf> {
    match install::find(Target::Cpu) {
        Ok(Some(found)) => Some(found.path),
        Ok(None) if std::env::var_os("CI").is_some() => {
            panic!("the CPU plugin is missing; .ci/run installs it with the example install-cpu")
        }
        Ok(None) => {
            println!("skipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The CPU plugin.
pub(crate) fn cpu() -> Option<Plugin> {
    Some(Plugin::load(&cpu_path()?).unwrap())
}

/// A client with so many devices.
pub(crate) fn client(devices: i64) -> Option<Client> {
    Some(cpu()?.client(&[("cpu_device_count", Value::Int(devices))]).unwrap())
}

/// Compiles for one device.
pub(crate) fn compile(client: &Client, program: &str) -> LoadedExecutable {
    client.compile(program.as_bytes(), &CompileOptions::default()).unwrap()
}

/// Adds its operand to itself.
pub(crate) const DOUBLE: &str = r"
module @double {
  func.func public @main(%x: tensor<4xf32>) -> tensor<4xf32> {
    %y = stablehlo.add %x, %x : tensor<4xf32>
    return %y : tensor<4xf32>
  }
}";

/// Adds its operands, and puts the sum where the first one was.
pub(crate) const ADD_IN_PLACE: &str = r"
module @add_in_place {
  func.func public @main(%x: tensor<1024xf32> {tf.aliasing_output = 0 : i32}, %y: tensor<1024xf32>)
      -> tensor<1024xf32> {
    %z = stablehlo.add %x, %y : tensor<1024xf32>
    return %z : tensor<1024xf32>
  }
}";
