//! Rust functions inside programs.

use std::sync::Once;

use gemma4_pjrt::custom_call::{Attribute, Call, Handler, register};
use gemma4_pjrt::{Argument, Client, CompileOptions, ElementType, Error, StatusCode};

use crate::support::{client, compile, cpu};

/// `y = factor * x + offset`, and the number of letters of a text.
struct Scale;

impl Handler for Scale {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        let factor = call.attributes.f32("factor")?;
        let offset = call.attributes.int("offset")?;
        let text = call.attributes.string("text")?;
        if call.attributes.get("list") != Some(Attribute::Ints(&[3, 4])) {
            return Err(format!("unexpected list in {:?}", call.attributes));
        }
        let x = call.operands[0].values::<f32>()?;
        if call.operands[0].dims() != [2, 2] || call.outputs[0].element() != ElementType::F32 {
            return Err("unexpected shapes".to_owned());
        }
        let offset = i16::try_from(offset).map_err(|error| error.to_string())?;
        for (y, x) in call.outputs[0].values::<f32>()?.iter_mut().zip(x) {
            *y = factor * x + f32::from(offset);
        }
        call.outputs[1].values::<i32>()?[0] = i32::try_from(text.len()).map_err(|error| error.to_string())?;
        Ok(())
    }
}

struct Fails;

impl Handler for Fails {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        call.operands[0].values::<i32>().map(|_| ())
    }
}

struct Panics;

impl Handler for Panics {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        assert!(call.outputs.len() > 7, "too few outputs");
        Ok(())
    }
}

/// Adds one to an array in place.
struct InPlace;

impl Handler for InPlace {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        let shared = call.operands[0].shared_with().ok_or("the memory is not shared")?;
        if call.operands[0].bytes().is_ok() {
            return Err("shared memory was lent twice".to_owned());
        }
        for value in call.outputs[shared].values::<f32>()? {
            *value += 1.0;
        }
        Ok(())
    }
}

fn with_handlers(devices: i64) -> Option<Client> {
    static REGISTERED: Once = Once::new();
    let plugin = cpu()?;
    REGISTERED.call_once(|| {
        register::<Scale>(plugin, "test_scale").unwrap();
        register::<Fails>(plugin, "test_fails").unwrap();
        register::<Panics>(plugin, "test_panics").unwrap();
        register::<InPlace>(plugin, "test_in_place").unwrap();
    });
    client(devices)
}

#[test]
fn a_handler_reads_operands_and_attributes_and_fills_outputs() {
    let Some(client) = with_handlers(1) else { return };
    let program = compile(
        &client,
        r#"func.func public @main(%x: tensor<2x2xf32>) -> (tensor<2x2xf32>, tensor<i32>) {
  %y:2 = stablehlo.custom_call @test_scale(%x) {api_version = 4 : i32,
    backend_config = {factor = 2.5 : f32, offset = -3 : i64, text = "hello", list = array<i64: 3, 4>}}
    : (tensor<2x2xf32>) -> (tensor<2x2xf32>, tensor<i32>)
  return %y#0, %y#1 : tensor<2x2xf32>, tensor<i32>
}"#,
    );
    let run = |program: &gemma4_pjrt::LoadedExecutable| {
        let x = client.buffer_of(&[0.0_f32, 1.0, 2.0, -4.0], &[2, 2], 0).unwrap();
        let outputs = program.execute(vec![vec![Argument::Keep(&x)]]).unwrap().remove(0);
        assert_eq!(outputs[0].to_vec::<f32>().unwrap(), [-3.0, -0.5, 2.0, -13.0]);
        assert_eq!(outputs[1].to_vec::<i32>().unwrap(), [5]);
    };
    run(&program);
    // A serialized program finds the handler by its name.
    run(&client.load(&program.executable().serialize().unwrap()).unwrap());
}

fn call_of(name: &str) -> String {
    format!(
        "func.func public @main(%x: tensor<4xf32>) -> tensor<4xf32> {{
  %y = stablehlo.custom_call @{name}(%x) {{api_version = 4 : i32, has_side_effect = true, backend_config = {{}}}}
    : (tensor<4xf32>) -> tensor<4xf32>
  return %y : tensor<4xf32>
}}"
    )
}

#[test]
fn errors_and_panics_of_handlers_fail_the_execution() {
    let Some(client) = with_handlers(1) else { return };
    let x = client.buffer_of(&[0.0_f32; 4], &[4], 0).unwrap();
    for (name, wanted) in [
        ("test_fails", "the array holds F32, not S32"),
        ("test_panics", "the custom-call handler panicked: too few outputs"),
    ] {
        let program = compile(&client, &call_of(name));
        for _ in 0..3 {
            let error = program.execute(vec![vec![Argument::Keep(&x)]]).unwrap_err();
            assert_eq!(error.code(), Some(StatusCode::Internal), "{error}");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
    assert_eq!(x.to_vec::<f32>().unwrap(), [0.0; 4]);
}

#[test]
fn memory_that_is_shared_is_lent_once() {
    let Some(client) = with_handlers(1) else { return };
    let program = compile(
        &client,
        "func.func public @main(%x: tensor<64xf32>) -> tensor<64xf32> {
  %y = stablehlo.custom_call @test_in_place(%x) {api_version = 4 : i32, backend_config = {},
    output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [], operand_index = 0,
      operand_tuple_indices = []>]} : (tensor<64xf32>) -> tensor<64xf32>
  return %y : tensor<64xf32>
}",
    );
    let x = client.buffer_of(&[1.0_f32; 64], &[64], 0).unwrap();
    let outputs = program.execute(vec![vec![Argument::Keep(&x)]]).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.0; 64]);
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.0; 64]);
}

#[test]
fn devices_call_a_handler_side_by_side() {
    let Some(client) = with_handlers(4) else { return };
    let program = r#"
module @side_by_side attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%x: tensor<2x2xf32> {mhlo.sharding = "{manual}"})
      -> (tensor<2x2xf32> {mhlo.sharding = "{manual}"}) {
    %y:2 = stablehlo.custom_call @test_scale(%x) {api_version = 4 : i32, mhlo.sharding = "{{manual}, {manual}}",
      backend_config = {factor = 2.0 : f32, offset = 1 : i64, text = "", list = array<i64: 3, 4>}}
      : (tensor<2x2xf32>) -> (tensor<2x2xf32>, tensor<i32>)
    return %y#0 : tensor<2x2xf32>
  }
}"#;
    let program = client.compile(program.as_bytes(), &CompileOptions::manual_spmd(&[0, 1, 2, 3])).unwrap();
    for round in 0_u16..20 {
        let operand =
            |device: u16| client.buffer_of(&[f32::from(100 * device + round); 4], &[2, 2], device.into()).unwrap();
        let operands: Vec<_> = (0_u16..4).map(operand).collect();
        let arguments = operands.iter().map(|operand| vec![Argument::Keep(operand)]).collect();
        for (device, outputs) in (0_u16..).zip(program.execute(arguments).unwrap()) {
            assert_eq!(outputs[0].to_vec::<f32>().unwrap(), [f32::from(2 * (100 * device + round) + 1); 4]);
        }
    }
}

#[test]
fn a_program_with_an_unknown_handler_does_not_run() {
    let Some(client) = with_handlers(1) else { return };
    let compiled = client.compile(call_of("test_nobody").as_bytes(), &Default::default());
    let error = compiled.and_then(|program| {
        let x = client.buffer_of(&[0.0_f32; 4], &[4], 0)?;
        program.execute(vec![vec![Argument::Keep(&x)]]).map(|_| ())
    });
    assert!(matches!(error, Err(Error::Xla { .. })), "{error:?}");
}

#[test]
fn a_name_is_taken_once() {
    let Some(client) = with_handlers(1) else { return };
    let error = register::<Fails>(client.plugin(), "test_scale").unwrap_err();
    assert!(matches!(error, Error::HandlerExists(_)), "{error}");
}
