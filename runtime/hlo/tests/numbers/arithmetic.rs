//! Constants and operations on each element.

use gemma4_hlo::{Comparison, ElementType, bf16, f16};

use crate::cases::{Case, case, f32s, s32s};

pub(crate) fn all() -> Vec<Case> {
    let (x, y) = (f32s(&[4], &[-7.5, 2.0, 0.5, 3.0]), f32s(&[4], &[2.0, -3.0, 4.0, 0.25]));
    let (a, c) = (s32s(&[4], &[-7, 6, 5, 12]), s32s(&[4], &[2, 3, 1, 2]));
    let positive = f32s(&[3], &[0.25, 1.0, 9.0]);
    let each = |numbers: &[f32], apply: fn(f32) -> f32| numbers.iter().map(|x| apply(*x)).collect::<Vec<_>>();
    let xs = [-7.5, 2.0, 0.5, 3.0];
    let ps = [0.25, 1.0, 9.0];
    vec![
        case(
            "float_binary",
            vec![x.clone(), y],
            &[
                &[-5.5, -1.0, 4.5, 3.25],
                &[-9.5, 5.0, -3.5, 2.75],
                &[-15.0, -6.0, 2.0, 0.75],
                &[-3.75, -2.0 / 3.0, 0.125, 12.0],
                &[-1.5, 2.0, 0.5, 0.0],
                &[2.0, 2.0, 4.0, 3.0],
                &[-7.5, -3.0, 0.5, 0.25],
                &[56.25, 0.125, 0.0625, 3_f32.powf(0.25)],
            ],
            |b, args| {
                Ok(vec![
                    b.add(args[0], args[1])?,
                    b.subtract(args[0], args[1])?,
                    b.multiply(args[0], args[1])?,
                    b.divide(args[0], args[1])?,
                    b.remainder(args[0], args[1])?,
                    b.maximum(args[0], args[1])?,
                    b.minimum(args[0], args[1])?,
                    b.power(args[0], args[1])?,
                ])
            },
        ),
        case(
            "integer_binary",
            vec![a, c],
            &[
                &[-3.0, 2.0, 5.0, 6.0],
                &[-1.0, 0.0, 0.0, 0.0],
                &[(-7 & 2) as f32, 2.0, 1.0, 0.0],
                &[(-7 | 2) as f32, 7.0, 5.0, 14.0],
                &[(-7 ^ 2) as f32, 5.0, 4.0, 14.0],
                &[-28.0, 48.0, 10.0, 48.0],
                &[-2.0, 0.0, 2.0, 3.0],
                &[(0xFFFF_FFF9_u32 >> 2) as f32, 0.0, 2.0, 3.0],
                &[6.0, -7.0, -6.0, -13.0],
            ],
            |b, args| {
                Ok(vec![
                    b.divide(args[0], args[1])?,
                    b.remainder(args[0], args[1])?,
                    b.and(args[0], args[1])?,
                    b.or(args[0], args[1])?,
                    b.xor(args[0], args[1])?,
                    b.shift_left(args[0], args[1])?,
                    b.shift_right_arithmetic(args[0], args[1])?,
                    b.shift_right_logical(args[0], args[1])?,
                    b.not(args[0])?,
                ])
            },
        ),
        case(
            "unary",
            vec![x, positive],
            &[
                &each(&xs, |x| -x),
                &each(&xs, f32::abs),
                &each(&xs, f32::signum),
                &each(&xs, f32::exp),
                &each(&xs, f32::tanh),
                &each(&xs, |x| 1.0 / (1.0 + (-x).exp())),
                &each(&xs, f32::floor),
                &each(&xs, f32::ceil),
                &[-8.0, 2.0, 0.0, 3.0],
                &each(&xs, f32::cos),
                &each(&xs, f32::sin),
                &each(&ps, f32::ln),
                &each(&ps, |x| 1.0 / x.sqrt()),
                &each(&ps, f32::sqrt),
            ],
            |b, args| {
                Ok(vec![
                    b.negate(args[0])?,
                    b.abs(args[0])?,
                    b.sign(args[0])?,
                    b.exponential(args[0])?,
                    b.tanh(args[0])?,
                    b.logistic(args[0])?,
                    b.floor(args[0])?,
                    b.ceil(args[0])?,
                    b.round_nearest_even(args[0])?,
                    b.cosine(args[0])?,
                    b.sine(args[0])?,
                    b.log(args[1])?,
                    b.rsqrt(args[1])?,
                    b.sqrt(args[1])?,
                ])
            },
        ),
        case(
            "compare_select_clamp",
            vec![f32s(&[3], &[1.0, f32::NAN, -2.0])],
            &[
                &[0.0, 0.0, 0.0],
                &[1.0, 1.0, 1.0],
                &[0.0, 0.0, 1.0],
                &[0.0, 0.0, 1.0],
                &[1.0, 0.0, 0.0],
                &[1.0, 0.0, 0.0],
                &[9.0, 9.0, -2.0],
                &[0.0, 0.0, 0.0],
                &[1.0, 0.0, -1.5],
            ],
            |b, args| {
                let zero = b.splat(0_f32, &[3])?;
                let nine = b.splat(9_f32, &[3])?;
                let mut results = Vec::new();
                use Comparison::{Eq, Ge, Gt, Le, Lt, Ne};
                for comparison in [Eq, Ne, Lt, Le, Gt, Ge] {
                    results.push(b.compare(comparison, args[0], zero)?);
                }
                results.push(b.select(results[2], args[0], nine)?);
                let no = b.scalar(false)?;
                results.push(b.select(no, nine, zero)?);
                let (least, most) = (b.scalar(-1.5_f32)?, b.splat(5_f32, &[3])?);
                let most_scalar = b.scalar(5_f32)?;
                let numbers = b.constant(&[1_f32, 0.0, -2.0], &[3])?;
                results.push(b.clamp(least, numbers, most_scalar)?);
                b.add(most, nine)?;
                Ok(results)
            },
        ),
        case(
            "constants",
            vec![],
            &[
                &[1.0, 0.0, 0.0, 1.0],
                &[-128.0, 127.0],
                &[0.0, 255.0],
                &[i32::MIN as f32, 7.0],
                &[u32::MAX as f32],
                &[-5.0],
                &[0.1, -0.0, f32::INFINITY],
                &[1.5, 0.100_097_656],
                &[1.5, 0.099_975_586],
                &[-448.0, 0.001_953_125],
                &[0.875, -f32::INFINITY],
                &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
                &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
                &[],
            ],
            |b, _| {
                let narrow = [
                    b.number(-448.0, ElementType::F8E4m3fn, &[1])?,
                    b.number(2_f64.powi(-9), ElementType::F8E4m3fn, &[1])?,
                    b.number(0.875, ElementType::F8E5m2, &[1])?,
                    b.lowest(ElementType::F8E5m2, &[1])?,
                ];
                Ok(vec![
                    b.constant(&[true, false, false, true], &[2, 2])?,
                    b.constant(&[i8::MIN, i8::MAX], &[2])?,
                    b.constant(&[0_u8, u8::MAX], &[2])?,
                    b.constant(&[i32::MIN, 7], &[2, 1])?,
                    b.splat(u32::MAX, &[1])?,
                    b.splat(-5_i64, &[1, 1])?,
                    b.constant(&[0.1_f32, -0.0, f32::INFINITY], &[3])?,
                    b.constant(&[bf16::from_f32(1.5), bf16::from_f32(0.1)], &[2])?,
                    b.constant(&[f16::from_f32(1.5), f16::from_f32(0.1)], &[2])?,
                    b.concatenate(&narrow[..2], 0)?,
                    b.concatenate(&narrow[2..], 0)?,
                    b.iota(ElementType::S32, &[2, 3], 1)?,
                    b.iota(ElementType::Bf16, &[2, 3], 0)?,
                    b.constant::<f32>(&[], &[2, 0])?,
                ])
            },
        ),
        case(
            "converts",
            vec![f32s(&[3], &[2.75, -1.0625, 448.0])],
            &[
                &[2.0, -1.0, 448.0],
                &[2.75, -1.0625, 448.0],
                &[2.75, -1.0, 448.0],
                &[3.0, -1.0, 448.0],
                &[1_076_887_552.0, -1_081_606_144.0, 1_138_753_536.0],
                &[0.0, 0.0, 0x30 as f32, 0x40 as f32],
                &[0.0, 0x4030 as f32, 0.0, 0x403 as f32],
            ],
            |b, args| {
                let bits = b.bitcast_convert(args[0], ElementType::S32)?;
                let mut results = vec![
                    b.convert(args[0], ElementType::S32)?,
                    b.convert(args[0], ElementType::Bf16)?,
                    b.convert(args[0], ElementType::F8E4m3fn)?,
                    b.convert(args[0], ElementType::F8E5m2)?,
                    bits,
                ];
                let first = b.slice(bits, &[0], &[1], &[1])?;
                let first = b.reshape(first, &[])?;
                let bytes = b.bitcast_convert(first, ElementType::U8)?;
                let back = b.bitcast_convert(bytes, ElementType::S32)?;
                let same = b.compare(Comparison::Eq, first, back)?;
                let same = b.broadcast_scalar(same, &[4])?;
                let zero = b.splat(0_u8, &[4])?;
                results.push(b.select(same, bytes, zero)?);
                // The halves of the first number, and the bits of the upper one moved down.
                let halves = b.bitcast_convert(first, ElementType::U16)?;
                let down = b.splat(4_u16, &[2])?;
                let down = b.shift_right_logical(halves, down)?;
                results.push(b.concatenate(&[halves, down], 0)?);
                Ok(results)
            },
        ),
    ]
}
