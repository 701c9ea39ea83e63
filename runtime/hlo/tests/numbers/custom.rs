//! Custom calls: what the builder writes is what a handler gets.

use gemma4_hlo::{Attribute, CustomCall, ElementType, Module, Parallelism, Parameter, Shape};
use gemma4_pjrt::custom_call::{self, Call, Handler, register};
use gemma4_pjrt::{Argument, CompileOptions};

use crate::client;

const TEXT: &str = "a \"quoted\" \\ line\n";

/// Checks all settings, adds one to the first operand in place, and returns the sum of the second.
struct Settings;

impl Handler for Settings {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        let attributes = &call.attributes;
        let right = attributes.get("flag") == Some(custom_call::Attribute::Bool(true))
            && attributes.int("rows")? == -4
            && attributes.int("stride")? == 1 << 40
            && attributes.f32("scale")?.to_bits() == 0.1_f32.to_bits()
            && attributes.string("name")? == TEXT
            && attributes.get("dims") == Some(custom_call::Attribute::Ints(&[1, -2]));
        if !right {
            return Err(format!("unexpected settings: {attributes:?}"));
        }
        if call.operands[0].shared_with() != Some(0) {
            return Err("the first operand is not aliased".to_owned());
        }
        let sum = call.operands[1].values::<f32>()?.iter().sum();
        for value in call.outputs[0].values::<f32>()? {
            *value += 1.0;
        }
        call.outputs[1].values::<f32>()?[0] = sum;
        Ok(())
    }
}

#[test]
fn a_handler_gets_what_the_call_says() {
    let Some(client) = client() else { return };
    register::<Settings>(client.plugin(), "gemma4.hlo.settings.v1").unwrap();
    let cache = Shape::new(ElementType::F32, [3]);
    let call = CustomCall {
        target: "gemma4.hlo.settings.v1".to_owned(),
        results: vec![cache.clone(), Shape::scalar(ElementType::F32)],
        config: vec![
            ("flag".to_owned(), Attribute::Bool(true)),
            ("rows".to_owned(), Attribute::S32(-4)),
            ("stride".to_owned(), Attribute::S64(1 << 40)),
            ("scale".to_owned(), Attribute::F32(0.1)),
            ("name".to_owned(), Attribute::Text(TEXT.to_owned())),
            ("dims".to_owned(), Attribute::S64List(vec![1, -2])),
        ],
        has_side_effect: false,
        aliases: vec![(0, 0)],
    };
    let mut module = Module::new("settings", Parallelism::Single).unwrap();
    let parameters =
        [Parameter::new("cache", cache).donated_to(0), Parameter::new("x", Shape::new(ElementType::F32, [2, 2]))];
    // The transposed operand shows that layouts are row-major whatever produced it.
    module
        .main(&parameters, |b, args| {
            let turned = b.transpose(args[1], &[1, 0])?;
            b.custom_call(&call, &[args[0], turned])
        })
        .unwrap();
    let program = client.compile(module.text().as_bytes(), &CompileOptions::default()).unwrap();
    let cache = client.buffer_of(&[1_f32, 2.0, 3.0], &[3], 0).unwrap();
    let x = client.buffer_of(&[1_f32, 2.0, 3.0, 4.0], &[2, 2], 0).unwrap();
    let outputs = program.execute(vec![vec![Argument::Donate(cache), Argument::Keep(&x)]]).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.0, 3.0, 4.0]);
    assert_eq!(outputs[0][1].to_vec::<f32>().unwrap(), [10.0]);
}
