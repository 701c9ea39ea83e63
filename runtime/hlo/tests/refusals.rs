//! What the builder refuses, and how it says so.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test as tests do")]

use gemma4_hlo::{
    Builder, Combine, CustomCall, DotDimensions, ElementType, Function, GatherDimensions, Groups, HloError, Module,
    Parallelism, Parameter, Precision, Problem, ScatterDimensions, Shape, Value,
};

const F32: ElementType = ElementType::F32;

/// Builds a main function with parameters of these sizes and returns what was refused.
fn refused(dims: &[&[u64]], build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>) -> HloError {
    let mut module = Module::new("refused", Parallelism::ManualPartitions(4)).unwrap();
    let parameters: Vec<Parameter> = dims.iter().map(|dims| Parameter::new("x", Shape::new(F32, *dims))).collect();
    let error = module.main(&parameters, build).unwrap_err();
    assert!(module.signature().is_none(), "a refused function must not be in the module");
    error
}

fn one(dims: &[&[u64]], build: impl FnOnce(&mut Builder, &[Value]) -> Result<Value, HloError>) -> String {
    refused(dims, |b, args| Ok(vec![build(b, args)?])).to_string()
}

#[test]
fn an_error_names_operation_scope_shapes_and_reason() {
    let error = refused(&[&[2, 3], &[3, 2]], |b, args| {
        b.scope("layer.3", |b| b.scope("attention", |b| Ok(vec![b.add(args[0], args[1])?])))
    });
    assert_eq!(error.op(), "add");
    assert_eq!(error.scope(), "layer.3/attention");
    assert_eq!(error.given(), [Shape::new(F32, [2, 3]), Shape::new(F32, [3, 2])]);
    insta::assert_snapshot!(error, @r#"`add` in scope `layer.3/attention`: the second operand is tensor<3x2xf32> but must be tensor<2x3xf32>; reshape, broadcast or convert it; given tensor<2x3xf32>, tensor<3x2xf32>"#);
}

#[test]
fn shapes_that_do_not_agree_are_refused() {
    let two = [[2_u64, 3].as_slice(), &[4, 3]];
    let s32 = |b: &mut Builder| b.splat(1_i32, &[2, 3]);
    let messages = [
        one(&two, |b, x| s32(b).and_then(|whole| b.add(x[0], whole))),
        one(&two, |b, x| b.not(x[0])),
        one(&two, |b, x| b.reshape(x[0], &[7])),
        one(&two, |b, x| b.transpose(x[0], &[0, 0])),
        one(&two, |b, x| b.broadcast(x[0], &[2, 4], &[0, 1])),
        one(&two, |b, x| b.broadcast(x[0], &[2, 3], &[0, 2])),
        one(&two, |b, x| b.concatenate(&[x[0], x[1]], 1)),
        one(&two, |b, _| b.concatenate(&[], 1)),
        one(&two, |b, x| b.slice(x[0], &[0, 2], &[2, 1], &[1, 1])),
        one(&two, |b, x| b.slice(x[0], &[0, 0], &[2, 3], &[0, 1])),
        one(&two, |b, x| b.slice_dim(x[0], 2, 0, 1)),
        one(&two, |b, x| b.scalar(0_f32).and_then(|zero| b.pad(x[0], zero, &[-3, 0], &[0, 0], &[0, 0]))),
        one(&two, |b, x| b.reverse(x[0], &[1, 1])),
        one(&two, |b, x| b.select(x[0], x[0], x[0])),
        one(&two, |b, x| b.bitcast_convert(x[0], ElementType::S64)),
        one(&two, |b, x| b.dynamic_slice(x[0], &[x[1]], &[1, 1])),
        one(&two, |b, x| b.reduce_sum(x[0], &[2])),
        one(&two, |b, x| b.top_k(x[0], 4).map(|(numbers, _)| numbers)),
        one(&two, |b, x| b.iota(F32, &[2], 1).and_then(|_| b.abs(x[0]))),
        one(&two, |b, _| b.constant(&[1_f32], &[2])),
        one(&two, |b, _| b.number(0.3, ElementType::F8E4m3fn, &[])),
        one(&two, |b, _| b.number(1e300, ElementType::Bf16, &[])),
        one(&two, |b, _| b.number(256.0, ElementType::U8, &[])),
        one(&two, |b, x| b.dot_general(x[0], x[1], &DotDimensions::contract(1, 0), F32, Precision::Default)),
        one(&two, |b, x| b.gather(x[0], x[1], &GatherDimensions::default(), &[1, 1])),
        one(&two, |b, x| b.scatter(x[0], x[1], x[1], &ScatterDimensions::default(), Combine::Add)),
        one(&two, |b, x| b.reduce(x[0], x[1], &[0], Combine::Replace)),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
`add` in scope `main`: the element types f32 and i32 differ; convert one of them; given tensor<2x3xf32>, tensor<2x3xi32>
`not` in scope `main`: element type f32 is not an integer or truth value; convert it first; given tensor<2x3xf32>
`reshape` in scope `main`: the number of elements is 7 but must be 6; given tensor<2x3xf32>
`transpose` in scope `main`: the permuted dimensions are [0, 0], but must be different from each other; given tensor<2x3xf32>
`broadcast_in_dim` in scope `main`: the size of a broadcast dimension is 3 but must be 4; given tensor<2x3xf32>
`broadcast_in_dim` in scope `main`: dimension 2 does not exist in a tensor of rank 2; dimensions count from 0; given tensor<2x3xf32>
`concatenate` in scope `main`: the size of a dimension that is not concatenated is 4 but must be 2; given tensor<2x3xf32>, tensor<4x3xf32>
`concatenate` in scope `main`: the number of operands is 0 but must be between 1 and 4294967295
`slice` in scope `main`: the limit of a slice is 1 but must be between 2 and 3; given tensor<2x3xf32>
`slice` in scope `main`: the stride of a slice is 0 but must be between 1 and 9223372036854775807; given tensor<2x3xf32>
`slice` in scope `main`: dimension 2 does not exist in a tensor of rank 2; dimensions count from 0; given tensor<2x3xf32>
`pad` in scope `main`: the size of a padded dimension is -1 but must be between 0 and 9223372036854775807; given tensor<2x3xf32>, tensor<f32>
`reverse` in scope `main`: the reversed dimensions are [1, 1], but must be different from each other; given tensor<2x3xf32>
`select` in scope `main`: element type f32 is not a truth value; convert it first; given tensor<2x3xf32>, tensor<2x3xf32>, tensor<2x3xf32>
`bitcast_convert` in scope `main`: the size of the last dimension is 3 but must be 2; given tensor<2x3xf32>
`dynamic_slice` in scope `main`: the number of start indices is 1 but must be 2; given tensor<2x3xf32>, tensor<4x3xf32>
`reduce` in scope `main`: dimension 2 does not exist in a tensor of rank 2; dimensions count from 0; given tensor<2x3xf32>, tensor<f32>
`top_k` in scope `main`: the count is 4 but must be between 0 and 3; given tensor<2x3xf32>
`iota` in scope `main`: dimension 1 does not exist in a tensor of rank 1; dimensions count from 0; given tensor<2xf32>
`constant` in scope `main`: the number of elements is 1 but must be 2; given tensor<2xf32>
`constant` in scope `main`: 0.3 cannot be written exactly enough as f8E4M3FN; use a constant of a wider type and convert it
`constant` in scope `main`: 1e300 cannot be written exactly enough as bf16; use a constant of a wider type and convert it
`constant` in scope `main`: 256.0 cannot be written exactly enough as ui8; use a constant of a wider type and convert it
`dot_general` in scope `main`: the size of a paired dimension on the right is 4 but must be 3; given tensor<2x3xf32>, tensor<4x3xf32>
`gather` in scope `main`: element type f32 is not an integer; convert it first; given tensor<2x3xf32>, tensor<4x3xf32>
`scatter` in scope `main`: element type f32 is not an integer; convert it first; given tensor<2x3xf32>, tensor<4x3xf32>, tensor<4x3xf32>
`reduce` in scope `main`: replacing has no order here; use another way to combine; given tensor<2x3xf32>, tensor<4x3xf32>
"#);
}

#[test]
fn sizes_beyond_63_bits_are_refused() {
    let huge = [u64::from(u32::MAX), u64::from(u32::MAX), 16];
    let error = refused(&[&huge], |_, args| Ok(args.to_vec()));
    assert!(matches!(error.problem(), Problem::TooLarge { .. }), "{error}");
    let error = refused(&[&[]], |b, args| Ok(vec![b.broadcast_scalar(args[0], &huge)?]));
    assert!(matches!(error.problem(), Problem::TooLarge { .. }), "{error}");
    let error = refused(&[&[0, u64::MAX]], |_, args| Ok(args.to_vec()));
    assert!(matches!(error.problem(), Problem::TooLarge { .. }), "{error}");
}

#[test]
fn a_value_is_used_only_where_it_can_be_seen() {
    let mut kept: Option<Value> = None;
    let mut first = Module::new("first", Parallelism::Single).unwrap();
    let x = Parameter::new("x", Shape::scalar(F32));
    first
        .main(&[x], |_, args| {
            kept = Some(args[0]);
            Ok(vec![args[0]])
        })
        .unwrap();
    let foreign = kept.unwrap();
    let error = refused(&[&[]], |b, args| Ok(vec![b.add(args[0], foreign)?]));
    assert_eq!(error.problem(), &Problem::ForeignValue { operand: 1 });

    let error = refused(&[&[]], |b, args| {
        let mut inner = args[0];
        let condition = b.scalar(true)?;
        b.conditional(
            condition,
            |b| {
                inner = b.negate(args[0])?;
                Ok(vec![inner])
            },
            |_| Ok(vec![args[0]]),
        )?;
        Ok(vec![b.abs(inner)?])
    });
    assert_eq!(error.problem(), &Problem::EndedBody { operand: 0 });

    let error = refused(&[&[3], &[]], |b, args| {
        b.reduce_with(&[args[0]], &[args[1]], &[0], |b, pair| Ok(vec![b.add(pair[0], args[1])?]))
    });
    assert_eq!(error.problem(), &Problem::IsolatedBody { operand: 1 });
}

#[test]
fn bodies_return_what_their_operation_has() {
    let error =
        refused(&[&[2]], |b, args| b.while_loop(&[args[0]], |b, _| b.scalar(true), |b, _| Ok(vec![b.scalar(1_f32)?])));
    assert_eq!(error.op(), "while");
    let error =
        refused(&[&[2]], |b, args| b.while_loop(&[args[0]], |_, args| Ok(args[0]), |_, args| Ok(args.to_vec())));
    assert_eq!(error.op(), "while");
    let error = refused(&[&[2]], |b, _| b.while_loop(&[], |b, _| b.scalar(true), |_, _| Ok(vec![])));
    assert!(matches!(error.problem(), Problem::Range { found: 0, .. }), "{error}");
    let error = refused(&[&[2]], |b, args| {
        let index = b.scalar(0_i32)?;
        b.case(index, 2, |_, branch| Ok(vec![args[0]; branch + 1]))
    });
    assert_eq!(error.op(), "case");
    let error = refused(&[&[2]], |b, args| b.sort(&[args[0]], 0, false, |_, pair| Ok(pair[0])));
    assert_eq!(error.op(), "sort");
}

#[test]
fn a_refused_operation_leaves_the_builder_usable() {
    let build = |wrong: bool| {
        let mut module = Module::new("same", Parallelism::Single).unwrap();
        module
            .main(&[Parameter::new("x", Shape::new(F32, [2]))], |b, args| {
                if wrong {
                    b.reshape(args[0], &[3]).unwrap_err();
                    let condition = b.scalar(true)?;
                    b.conditional(condition, |b| Ok(vec![b.abs(args[0])?]), |b| Ok(vec![b.not(args[0])?])).unwrap_err();
                } else {
                    b.scalar(true)?;
                }
                Ok(vec![b.abs(args[0])?])
            })
            .unwrap();
        module.text()
    };
    assert_eq!(build(true), build(false));
}

#[test]
fn groups_hold_each_device_once() {
    for groups in [
        vec![],
        vec![vec![]],
        vec![vec![0, 1]],
        vec![vec![0, 1], vec![2]],
        vec![vec![0, 1, 2, 4]],
        vec![vec![0, 1, 2, 2]],
    ] {
        let groups = Groups::new(groups);
        let error = refused(&[&[4]], |b, args| Ok(vec![b.all_reduce(args[0], &groups, Combine::Add)?]));
        assert_eq!(error.op(), "all_reduce");
        refused(&[&[4]], |b, args| Ok(vec![b.all_gather(args[0], 0, &groups)?]));
        refused(&[&[4]], |b, args| Ok(vec![b.all_to_all(args[0], 0, 0, &groups)?]));
        refused(&[&[4]], |b, args| Ok(vec![b.reduce_scatter(args[0], 0, &groups, Combine::Add)?]));
    }
    let all = Groups::all(Parallelism::ManualPartitions(4));
    refused(&[&[6]], |b, args| Ok(vec![b.reduce_scatter(args[0], 0, &all, Combine::Add)?]));
    refused(&[&[6]], |b, args| Ok(vec![b.collective_permute(args[0], &[(0, 1), (2, 1)])?]));
    refused(&[&[6]], |b, args| Ok(vec![b.collective_permute(args[0], &[(0, 4)])?]));
}

#[test]
fn functions_and_donations_are_checked() {
    let scalar = Shape::scalar(F32);
    let mut other = Module::new("other", Parallelism::Single).unwrap();
    let foreign: Function = other.function("f", std::slice::from_ref(&scalar), |_, args| Ok(args.to_vec())).unwrap();
    let error = refused(&[&[]], |b, args| b.call(foreign, args));
    assert_eq!(error.problem(), &Problem::ForeignFunction);

    let mut module = Module::new("module", Parallelism::Single).unwrap();
    let f = module.function("f", std::slice::from_ref(&scalar), |_, args| Ok(args.to_vec())).unwrap();
    assert!(matches!(module.function("f", &[], |_, _| Ok(vec![])).unwrap_err().problem(), Problem::Name { .. }));
    assert!(matches!(module.function("main", &[], |_, _| Ok(vec![])).unwrap_err().problem(), Problem::Name { .. }));
    assert!(matches!(module.function("a b", &[], |_, _| Ok(vec![])).unwrap_err().problem(), Problem::Name { .. }));
    let x = Parameter::new("x", Shape::new(F32, [2]));
    let error = module.main(std::slice::from_ref(&x), |b, args| b.call(f, args)).unwrap_err();
    assert_eq!(error.op(), "func.call");
    for (parameters, results) in [
        (vec![x.clone().donated_to(1)], 1),
        (vec![x.clone().donated_to(0), x.clone().donated_to(0)], 1),
        (vec![Parameter::new("y", scalar).donated_to(1), x.clone()], 2),
    ] {
        let error = module.main(&parameters, |_, args| Ok(vec![args[args.len() - 1]; results])).unwrap_err();
        assert_eq!(error.op(), "function");
    }
    assert!(Module::new("1", Parallelism::Single).is_err());
    assert!(Module::new("none", Parallelism::Replicas(0)).is_err());
}

#[test]
fn custom_calls_are_checked() {
    let shape = Shape::new(F32, [2]);
    let good = CustomCall { target: "t".to_owned(), results: vec![shape.clone()], ..CustomCall::default() };
    let setting = ("a".to_owned(), gemma4_hlo::Attribute::Bool(true));
    for call in [
        CustomCall { target: String::new(), ..good.clone() },
        CustomCall { results: vec![], ..good.clone() },
        CustomCall { config: vec![setting.clone(), setting], ..good.clone() },
        CustomCall { config: vec![("a b".to_owned(), gemma4_hlo::Attribute::Bool(true))], ..good.clone() },
        CustomCall { aliases: vec![(0, 1)], ..good.clone() },
        CustomCall { aliases: vec![(0, 0), (0, 0)], ..good.clone() },
        CustomCall { results: vec![Shape::new(F32, [3])], aliases: vec![(0, 0)], ..good.clone() },
    ] {
        assert_eq!(refused(&[&[2]], |b, args| b.custom_call(&call, args)).op(), "custom_call");
    }
}
