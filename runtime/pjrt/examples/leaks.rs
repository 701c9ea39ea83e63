//! Makes, runs and drops everything in loops, for a memory checker:
//!
//! ```sh
//! cargo build -p gemma4-pjrt --example leaks
//! valgrind --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=none --num-callers=30 \
//!     target/debug/examples/leaks
//! ```
//!
//! What counts is that the bytes "definitely lost" do not grow with the number of rounds, which is the first argument
//! (3 by default), and that no read or write is invalid. The 8 bytes that are always lost are the library, which is never
//! unloaded. The jumps that "depend on uninitialised values" lie in the plugin's copy of protobuf.

use std::sync::Arc;

use gemma4_pjrt::custom_call::{Call, Handler, register};
use gemma4_pjrt::install::{Target, find};
use gemma4_pjrt::{Argument, CompileOptions, ElementType, Error, HostBytes, Plugin, Value};

const ADD: &str = "func.func public @main(%x: tensor<64xf32> {tf.aliasing_output = 0 : i32}, %y: tensor<64xf32>)
    -> (tensor<64xf32>, tensor<64xf32>) {
  %z = stablehlo.add %x, %y : tensor<64xf32>
  %w = stablehlo.custom_call @leaks_negate(%y) {api_version = 4 : i32, backend_config = {fail = 0 : i64}}
    : (tensor<64xf32>) -> tensor<64xf32>
  return %z, %w : tensor<64xf32>, tensor<64xf32>
}";

struct Negate;

impl Handler for Negate {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        if call.attributes.int("fail")? != 0 {
            return Err("as asked".to_owned());
        }
        let x = call.operands[0].values::<f32>()?;
        for (y, x) in call.outputs[0].values::<f32>()?.iter_mut().zip(x) {
            *y = -x;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    gemma4_pjrt::environment::prepare(&[gemma4_pjrt::environment::QUIET])?;
    let rounds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse::<u32>())?;
    let found = find(Target::Cpu)?.ok_or("no CPU plugin; run the example install-cpu")?;
    let plugin = Plugin::load(&found.path)?;
    register::<Negate>(plugin, "leaks_negate")?;
    for _ in 0..rounds {
        round(plugin)?;
    }
    Ok(())
}

fn round(plugin: Plugin) -> Result<(), Error> {
    let client = plugin.client(&[("cpu_device_count", Value::Int(2))])?;
    let program = client.compile(ADD.as_bytes(), &CompileOptions::default())?;
    let program = client.load(&program.executable().serialize()?)?;
    let failing = client.compile(ADD.replace("fail = 0", "fail = 1").as_bytes(), &CompileOptions::default())?;
    drop((program.executable().cost_analysis()?, program.executable().outputs()?, client.topology()?));
    for _ in 0..5 {
        let owner: Arc<Vec<u8>> = Arc::new(vec![0; 64 * 4 + 64]);
        let lent = HostBytes::new(owner).slice(0..64 * 4)?;
        let y = client.borrow(lent, ElementType::F32, &[64], 0)?;
        let mut x = client.buffer_of(&[1.0_f32; 64], &[64], 0)?;
        for _ in 0..5 {
            x = program.execute(vec![vec![Argument::Donate(x), Argument::Keep(&y)]])?.remove(0).remove(0);
        }
        drop(program.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&y)]])?);
        // Failures free what they hold, too.
        drop(failing.execute(vec![vec![Argument::Donate(x), Argument::Keep(&y)]]).err());
        drop(client.compile(b"no program", &CompileOptions::default()).err());
        drop(y.copy_to_device(1)?.to_host()?);
    }
    Ok(())
}
