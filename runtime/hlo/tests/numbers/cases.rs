//! Small programs, their inputs, and the numbers that they must give, worked out by hand or by plain loops.

use gemma4_hlo::{Builder, ElementType, HloError, Module, Parallelism, Parameter, Shape, Value};

use crate::{arithmetic, control, indexing, reductions, shaping};

/// Elements in row-major order.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    F32(Vec<f32>),
    S32(Vec<i32>),
}

/// A tensor of the outside.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dims: Vec<u64>,
    pub(crate) data: Data,
}

/// A program. All of its outputs are f32.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) module: Module,
    /// `[device][parameter]`
    pub(crate) inputs: Vec<Vec<Tensor>>,
    /// `[device][output]`
    pub(crate) expected: Vec<Vec<Vec<f32>>>,
    /// Largest difference, relative to numbers above 1.
    pub(crate) tolerance: f32,
}

pub(crate) fn f32s(dims: &[u64], data: &[f32]) -> Tensor {
    Tensor { dims: dims.to_vec(), data: Data::F32(data.to_vec()) }
}

pub(crate) fn s32s(dims: &[u64], data: &[i32]) -> Tensor {
    Tensor { dims: dims.to_vec(), data: Data::S32(data.to_vec()) }
}

/// 0, 1, 2, ...
pub(crate) fn count(dims: &[u64]) -> Tensor {
    let elements: u64 = dims.iter().product();
    f32s(dims, &(0..elements).map(|number| number as f32).collect::<Vec<_>>())
}

pub(crate) fn parameters(inputs: &[Tensor]) -> Vec<Parameter> {
    let parameter = |(index, tensor): (usize, &Tensor)| {
        let element = match tensor.data {
            Data::F32(_) => ElementType::F32,
            Data::S32(_) => ElementType::S32,
        };
        Parameter::new(format!("input.{index}"), Shape::new(element, tensor.dims.clone()))
    };
    inputs.iter().enumerate().map(parameter).collect()
}

pub(crate) fn case(
    name: &'static str,
    inputs: Vec<Tensor>,
    expected: &[&[f32]],
    build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
) -> Case {
    let module = Module::new(name, Parallelism::Single).unwrap();
    finish(module, name, inputs, expected, build)
}

pub(crate) fn finish(
    mut module: Module,
    name: &'static str,
    inputs: Vec<Tensor>,
    expected: &[&[f32]],
    build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
) -> Case {
    let built = module.main(&parameters(&inputs), |b, args| {
        let results = build(b, args)?;
        results.into_iter().map(|value| b.convert(value, ElementType::F32)).collect()
    });
    built.unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected = expected.iter().map(|numbers| numbers.to_vec()).collect();
    Case { name, module, inputs: vec![inputs], expected: vec![expected], tolerance: 1e-5 }
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [arithmetic::all(), shaping::all(), indexing::all(), reductions::all(), control::all()]
        .into_iter()
        .flatten()
        .collect()
}
