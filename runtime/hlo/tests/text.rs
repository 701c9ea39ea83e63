//! The text of small modules.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test as tests do")]

use gemma4_hlo::{Builder, Combine, ElementType, Groups, HloError, Module, Parallelism, Parameter, Shape, Value};

/// A row-parallel product's tail: scale by a function, sum over all devices, update a donated cache.
fn module(scope: &str, name: &str) -> Module {
    let parallelism = Parallelism::ManualPartitions(2);
    let mut module = Module::new("step", parallelism).unwrap();
    let shape = Shape::new(ElementType::Bf16, [2, 3]);
    let double =
        module.function("double", std::slice::from_ref(&shape), |b, args| Ok(vec![b.add(args[0], args[0])?])).unwrap();
    let build = |b: &mut Builder, args: &[Value]| -> Result<Vec<Value>, HloError> {
        let sum = b.scope(scope, |b| {
            let twice = b.call(double, &[args[0]])?;
            b.scope("all-reduce", |b| b.all_reduce(twice[0], &Groups::all(parallelism), Combine::Add))
        })?;
        let (zero, limit) = (b.scalar(0_i32)?, b.scalar(2_i32)?);
        let results = b.for_loop(zero, limit, &[args[1]], |b, row, cache| {
            let first = b.slice_dim(sum, 0, 0, 1)?;
            let column = b.scalar(0_i32)?;
            Ok(vec![b.dynamic_update_slice(cache[0], first, &[row, column])?])
        })?;
        Ok(vec![results[0], sum])
    };
    let parameters = [Parameter::new(name, shape.clone()), Parameter::new("cache", shape).donated_to(0)];
    module.main(&parameters, build).unwrap();
    module
}

#[test]
fn readable_text_has_scopes_and_manual_marks() {
    insta::assert_snapshot!(module("layer.3/\"mlp\"", "hidden").text(), @r#"
module @step attributes {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} {
  func.func private @double(%arg0: tensor<2x3xbf16> {mhlo.sharding = "{manual}"} loc("double.0")) -> (tensor<2x3xbf16> {mhlo.sharding = "{manual}"}) {
    %0 = "stablehlo.add"(%arg0, %arg0) {mhlo.sharding = "{manual}"} : (tensor<2x3xbf16>, tensor<2x3xbf16>) -> tensor<2x3xbf16> loc("double")
    "func.return"(%0) : (tensor<2x3xbf16>) -> () loc("double")
  } loc("double")
  func.func public @main(%arg0: tensor<2x3xbf16> {mhlo.sharding = "{manual}"} loc("hidden"), %arg1: tensor<2x3xbf16> {mhlo.sharding = "{manual}", tf.aliasing_output = 0 : i32} loc("cache")) -> (tensor<2x3xbf16> {mhlo.sharding = "{manual}"}, tensor<2x3xbf16> {mhlo.sharding = "{manual}"}) {
    %0 = "func.call"(%arg0) <{callee = @double}> {mhlo.sharding = "{manual}"} : (tensor<2x3xbf16>) -> tensor<2x3xbf16> loc("layer.3/\22mlp\22")
    %1 = "stablehlo.all_reduce"(%0) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, use_global_device_ids}> ({
    ^bb0(%arg2: tensor<bf16> loc("layer.3/\22mlp\22/all-reduce"), %arg3: tensor<bf16> loc("layer.3/\22mlp\22/all-reduce")):
      %2 = "stablehlo.add"(%arg2, %arg3) : (tensor<bf16>, tensor<bf16>) -> tensor<bf16> loc("layer.3/\22mlp\22/all-reduce")
      "stablehlo.return"(%2) : (tensor<bf16>) -> () loc("layer.3/\22mlp\22/all-reduce")
    }) {mhlo.sharding = "{manual}"} : (tensor<2x3xbf16>) -> tensor<2x3xbf16> loc("layer.3/\22mlp\22/all-reduce")
    %3 = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> {mhlo.sharding = "{manual}"} : () -> tensor<i32> loc("main")
    %4 = "stablehlo.constant"() <{value = dense<2> : tensor<i32>}> {mhlo.sharding = "{manual}"} : () -> tensor<i32> loc("main")
    %5:2 = "stablehlo.while"(%3, %arg1) ({
    ^bb0(%arg4: tensor<i32> loc("main"), %arg5: tensor<2x3xbf16> loc("main")):
      %6 = "stablehlo.compare"(%arg4, %4) <{comparison_direction = #stablehlo<comparison_direction LT>}> {mhlo.sharding = "{manual}"} : (tensor<i32>, tensor<i32>) -> tensor<i1> loc("main")
      "stablehlo.return"(%6) : (tensor<i1>) -> () loc("main")
    }, {
    ^bb0(%arg6: tensor<i32> loc("main"), %arg7: tensor<2x3xbf16> loc("main")):
      %7 = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> {mhlo.sharding = "{manual}"} : () -> tensor<i32> loc("main")
      %8 = "stablehlo.add"(%arg6, %7) {mhlo.sharding = "{manual}"} : (tensor<i32>, tensor<i32>) -> tensor<i32> loc("main")
      %9 = "stablehlo.slice"(%1) <{start_indices = array<i64: 0, 0>, limit_indices = array<i64: 1, 3>, strides = array<i64: 1, 1>}> {mhlo.sharding = "{manual}"} : (tensor<2x3xbf16>) -> tensor<1x3xbf16> loc("main")
      %10 = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> {mhlo.sharding = "{manual}"} : () -> tensor<i32> loc("main")
      %11 = "stablehlo.dynamic_update_slice"(%arg7, %9, %arg6, %10) {mhlo.sharding = "{manual}"} : (tensor<2x3xbf16>, tensor<1x3xbf16>, tensor<i32>, tensor<i32>) -> tensor<2x3xbf16> loc("main")
      "stablehlo.return"(%8, %11) : (tensor<i32>, tensor<2x3xbf16>) -> () loc("main")
    }) {mhlo.sharding = "{{manual}, {manual}}"} : (tensor<i32>, tensor<2x3xbf16>) -> (tensor<i32>, tensor<2x3xbf16>) loc("main")
    "func.return"(%5#1, %1) : (tensor<2x3xbf16>, tensor<2x3xbf16>) -> () loc("main")
  } loc("main")
}
"#);
}

#[test]
fn canonical_text_does_not_depend_on_names() {
    let first = module("layer.3", "hidden");
    let second = module("layer.4", "other");
    assert_ne!(first.text(), second.text());
    assert_eq!(first.canonical(), second.canonical());
    assert!(!first.canonical().contains("loc("));
    assert_eq!(first.text(), module("layer.3", "hidden").text());
}

#[test]
fn equal_constants_of_a_body_are_one_operation() {
    let mut module = Module::new("shared", Parallelism::Single).unwrap();
    module
        .main(&[], |b, _| {
            let values = [b.scalar(1_f32)?, b.scalar(1_f32)?, b.number(1.0, ElementType::F32, &[])?];
            assert_eq!(values[0], values[1]);
            assert_eq!(values[0], values[2]);
            assert_ne!(values[0], b.splat(1_f32, &[1])?);
            assert_eq!(b.iota(ElementType::S32, &[4], 0)?, b.iota(ElementType::S32, &[4], 0)?);
            Ok(values.to_vec())
        })
        .unwrap();
    assert_eq!(module.text().matches("stablehlo.constant").count(), 2);
    assert_eq!(module.text().matches("stablehlo.iota").count(), 1);
}
