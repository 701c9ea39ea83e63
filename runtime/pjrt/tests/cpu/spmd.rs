//! Programs over several devices.

use gemma4_pjrt::{Argument, CompileOptions};

use crate::support::client;

/// Each device adds its index to its operand, then all sum over all.
const ALL_REDUCE: &str = r#"
module @all_reduce attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%x: tensor<2x3xf32> {mhlo.sharding = "{manual}"})
      -> (tensor<2x3xf32> {mhlo.sharding = "{manual}"}) {
    %id = stablehlo.partition_id {mhlo.sharding = "{manual}"} : tensor<ui32>
    %f = stablehlo.convert %id {mhlo.sharding = "{manual}"} : (tensor<ui32>) -> tensor<f32>
    %b = stablehlo.broadcast_in_dim %f, dims = [] {mhlo.sharding = "{manual}"} : (tensor<f32>) -> tensor<2x3xf32>
    %y = stablehlo.add %x, %b {mhlo.sharding = "{manual}"} : tensor<2x3xf32>
    %z = "stablehlo.all_reduce"(%y) <{
      replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>,
      channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>,
      use_global_device_ids
    }> ({
    ^bb0(%l: tensor<f32>, %r: tensor<f32>):
      %s = stablehlo.add %l, %r {mhlo.sharding = "{manual}"} : tensor<f32>
      stablehlo.return %s {mhlo.sharding = "{manual}"} : tensor<f32>
    }) {mhlo.sharding = "{manual}"} : (tensor<2x3xf32>) -> tensor<2x3xf32>
    return %z : tensor<2x3xf32>
  }
}"#;

#[test]
fn a_manual_all_reduce_sums_over_four_devices() {
    let Some(client) = client(4) else { return };
    let ids: Vec<i64> = client.devices().map(|device| device.id.into()).collect();
    let program = client.compile(ALL_REDUCE.as_bytes(), &CompileOptions::manual_spmd(&ids)).unwrap();
    assert_eq!(program.devices(), [0, 1, 2, 3]);
    assert_eq!(program.executable().num_partitions().unwrap(), 4);
    assert_eq!(program.executable().num_replicas().unwrap(), 1);
    // Local shapes are literal: each device holds and gives 2 x 3.
    assert_eq!(program.executable().outputs().unwrap()[0].dims, [2, 3]);
    let local = |device: u16| [0_u16, 1, 2, 3, 4, 5].map(|index| f32::from(10 * device + index));
    let operands: Vec<_> =
        (0_u16..4).map(|device| client.buffer_of(&local(device), &[2, 3], device.into()).unwrap()).collect();
    let arguments = operands.iter().map(|operand| vec![Argument::Keep(operand)]).collect();
    let outputs = program.execute(arguments).unwrap();
    // Sum over devices of 10 d + i + d: 11 * 6 + 4 i.
    let expected = [66.0, 70.0, 74.0, 78.0, 82.0, 86.0];
    for (device, list) in outputs.iter().enumerate() {
        assert_eq!(list[0].device().unwrap(), device);
        assert_eq!(list[0].to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn lists_that_do_not_fit_the_devices_are_refused() {
    let Some(client) = client(4) else { return };
    let program = client.compile(ALL_REDUCE.as_bytes(), &CompileOptions::manual_spmd(&[0, 1, 2, 3])).unwrap();
    let operands: Vec<_> = (0..4).map(|device| client.buffer_of(&[0.0_f32; 6], &[2, 3], device).unwrap()).collect();
    let short = operands[..3].iter().map(|operand| vec![Argument::Keep(operand)]).collect();
    let error = program.execute(short).unwrap_err().to_string();
    assert_eq!(error, "cannot execute: the program runs on 4 devices, and 3 lists were given");
    let ragged = operands.iter().enumerate().map(
        |(device, operand)| {
            if device == 2 { vec![] } else { vec![Argument::Keep(operand)] }
        },
    );
    let error = program.execute(ragged.collect()).unwrap_err().to_string();
    assert_eq!(error, "cannot execute: device 0 is given 1 arguments, and device 2 0");
    // The buffers of two devices in the wrong order.
    let swapped = [1, 0, 2, 3].iter().map(|device| vec![Argument::Keep(&operands[*device])]).collect();
    let error = program.execute(swapped).unwrap_err().to_string();
    assert_eq!(error, "cannot execute: argument 0 for device 0 lies on device 1");
    let odd = client.buffer_of(&[0.0_f32; 5], &[5], 3).unwrap();
    let mixed = [&operands[0], &operands[1], &operands[2], &odd].map(|operand| vec![Argument::Keep(operand)]);
    let error = program.execute(mixed.into()).unwrap_err().to_string();
    assert_eq!(error, "cannot execute: argument 0 differs in type or shape between devices 0 and 3");
}
