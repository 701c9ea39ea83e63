//! Compiling, loading, and what is known of programs.

use gemma4_pjrt::{Argument, CompileOptions, ElementType, Error, OutputShape, Override, StatusCode, Value};

use crate::support::{ADD_IN_PLACE, DOUBLE, client, compile, cpu};

#[test]
fn a_program_says_what_it_takes_and_gives() {
    let Some(client) = client(1) else { return };
    let loaded = compile(&client, ADD_IN_PLACE);
    let program = loaded.executable();
    assert_eq!(program.name().unwrap(), "add_in_place");
    assert_eq!((program.num_outputs().unwrap(), loaded.num_outputs()), (1, 1));
    assert_eq!(program.outputs().unwrap(), [OutputShape { element: ElementType::F32, dims: vec![1024] }]);
    let stats = program.memory_stats().unwrap();
    // Two arguments of 4 KiB, one output in the place of the first.
    assert_eq!((stats.arguments, stats.outputs, stats.aliased), (8192, 4096, 4096));
    assert_eq!(stats.total(), 8192 + stats.temporaries + stats.generated_code);
    let cost = program.cost_analysis().unwrap();
    assert_eq!(cost.get("flops"), Some(&Value::Float(1024.0)));
    assert_eq!(cost.get("bytes accessed"), Some(&Value::Float(3.0 * 4096.0)));
    let (format, code) = program.optimized_program().unwrap();
    assert!(format.starts_with("hlo"), "{format}");
    assert!(code.windows(12).any(|part| part == b"add_in_place"));
    assert!(!program.fingerprint().unwrap().is_empty());
    assert!(stats.peak.is_some_and(|peak| peak >= 8192), "{stats:?}");
}

#[test]
fn a_serialized_program_runs_on_another_client() {
    let Some(first) = client(1) else { return };
    let bytes = compile(&first, DOUBLE).executable().serialize().unwrap();
    drop(first);
    let second = client(1).unwrap();
    let program = second.load(&bytes).unwrap();
    let x = second.buffer_of(&[1.0_f32, 2.0, 3.0, 4.0], &[4], 0).unwrap();
    let outputs = program.execute(vec![vec![Argument::Keep(&x)]]).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
    assert!(matches!(second.load(b"not an executable"), Err(Error::Xla { .. })));
    assert!(matches!(second.load(b""), Err(Error::Xla { .. })));
}

#[test]
fn xla_says_what_is_wrong_with_a_program() {
    let Some(client) = client(1) else { return };
    let error = client.compile(b"func.func @main() { what }", &CompileOptions::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("XLA cannot compile the program: "), "{text}");
    assert!(client.compile(b"", &CompileOptions::default()).is_err());
    assert!(client.compile(b"\xff\x00", &CompileOptions::default()).is_err());
}

#[test]
fn arguments_of_the_wrong_number_or_size_are_refused() {
    let Some(client) = client(1) else { return };
    let program = compile(&client, DOUBLE);
    let good = client.buffer_of(&[1.0_f32; 4], &[4], 0).unwrap();
    let small = client.buffer_of(&[1.0_f32; 2], &[2], 0).unwrap();
    for arguments in [vec![], vec![Argument::Keep(&good), Argument::Keep(&good)], vec![Argument::Keep(&small)]] {
        let error = program.execute(vec![arguments]).unwrap_err();
        assert_eq!(error.code(), Some(StatusCode::InvalidArgument), "{error}");
    }
    assert!(matches!(program.execute(vec![]), Err(Error::Arguments(_))));
    let other = crate::support::client(1).unwrap();
    let foreign = other.buffer_of(&[1.0_f32; 4], &[4], 0).unwrap();
    let error = program.execute(vec![vec![Argument::Keep(&foreign)]]).unwrap_err().to_string();
    assert_eq!(error, "cannot execute: argument 0 of device 0 belongs to another client");
}

#[test]
fn compiling_for_more_devices_than_there_are_fails() {
    let Some(client) = client(2) else { return };
    let error = client.compile(DOUBLE.as_bytes(), &CompileOptions::manual_spmd(&[0, 1, 2, 3])).unwrap_err();
    assert!(matches!(error, Error::Xla { .. }), "{error}");
    let mut options = CompileOptions::manual_spmd(&[0, 1]);
    options.num_partitions = 1;
    assert!(matches!(client.compile(DOUBLE.as_bytes(), &options), Err(Error::OutOfRange { .. })));
}

#[test]
fn flags_of_one_program_reach_xla() {
    let Some(client) = client(1) else { return };
    let with = |name: &str, value| {
        let overrides = [(name.to_owned(), value)].into();
        client.compile(DOUBLE.as_bytes(), &CompileOptions { overrides, ..CompileOptions::default() })
    };
    with("xla_cpu_enable_fast_math", Override::Bool(true)).unwrap();
    let error = with("xla_there_is_no_such_flag", Override::Bool(true)).unwrap_err();
    assert!(error.to_string().contains("xla_there_is_no_such_flag"), "{error}");
}

#[test]
fn threads_share_a_program() {
    let Some(client) = client(1) else { return };
    let program = compile(&client, DOUBLE);
    std::thread::scope(|scope| {
        for thread in 0_u8..8 {
            let (client, program) = (&client, &program);
            scope.spawn(move || {
                for round in 0_u8..50 {
                    let value = f32::from(thread) * 100.0 + f32::from(round);
                    let x = client.buffer_of(&[value; 4], &[4], 0).unwrap();
                    let outputs = program.execute(vec![vec![Argument::Keep(&x)]]).unwrap();
                    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.0 * value; 4]);
                }
            });
        }
    });
}

#[test]
fn topologies_come_from_clients() {
    let Some(client) = client(4) else { return };
    let topology = client.topology().unwrap();
    drop(client);
    assert_eq!(topology.platform_name().unwrap(), "cpu");
    assert!(!topology.platform_version().unwrap().is_empty());
    assert_eq!(topology.devices().unwrap().len(), 4);
    assert!(!topology.serialize().unwrap().is_empty());
    // The CPU plugin compiles for clients only, and knows no names.
    let error = topology.compile(DOUBLE.as_bytes(), &CompileOptions::default()).unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::NotFound), "{error}");
    let error = cpu().unwrap().topology("v6e:2x2", &[]).unwrap_err();
    assert_eq!(error.code(), Some(StatusCode::Unimplemented), "{error}");
}
