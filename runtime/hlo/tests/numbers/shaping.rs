//! Operations that move elements.

use crate::cases::{Case, case, count, f32s, s32s};

pub(crate) fn all() -> Vec<Case> {
    vec![
        case(
            "broadcasts",
            vec![f32s(&[], &[3.0]), count(&[2]), count(&[2, 1])],
            &[&[3.0; 4], &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], &[0.0, 1.0, 0.0, 1.0], &[0.0, 0.0, 1.0, 1.0]],
            |b, args| {
                let scalar = b.broadcast_scalar(args[0], &[2, 2])?;
                Ok(vec![
                    scalar,
                    b.broadcast(args[1], &[2, 3], &[0])?,
                    b.broadcast_like(args[1], scalar, &[1])?,
                    b.broadcast(args[2], &[2, 2], &[0, 1])?,
                ])
            },
        ),
        case(
            "moves",
            vec![count(&[2, 3])],
            &[
                &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0],
                &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0],
                &[0.0, 2.0, 3.0, 5.0],
                &[1.0, 4.0],
                &[9.0, 0.0, 9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0, 9.0, 5.0],
                &[1.0, 2.0, 9.0, 4.0, 5.0, 9.0],
                &[5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
            ],
            |b, args| {
                let x = args[0];
                let nine = b.scalar(9_f32)?;
                Ok(vec![
                    b.transpose(x, &[1, 0])?,
                    b.reshape(x, &[3, 1, 2])?,
                    b.concatenate(&[x, x], 1)?,
                    b.slice(x, &[0, 0], &[2, 3], &[1, 2])?,
                    b.slice_dim(x, 1, 1, 2)?,
                    b.pad(x, nine, &[0, 1], &[0, 0], &[0, 1])?,
                    b.pad(x, nine, &[0, -1], &[0, 1], &[0, 0])?,
                    b.reverse(x, &[0, 1])?,
                ])
            },
        ),
        case(
            "dynamic_slices",
            vec![count(&[3, 4]), s32s(&[], &[1]), s32s(&[], &[9])],
            &[&[6.0, 7.0, 10.0, 11.0], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0, -2.0, 8.0, 9.0, 10.0, 11.0]],
            |b, args| {
                let update = b.constant(&[-1_f32, -2.0], &[1, 2])?;
                Ok(vec![
                    b.dynamic_slice(args[0], &[args[1], args[2]], &[2, 2])?,
                    b.dynamic_update_slice(args[0], update, &[args[1], args[2]])?,
                ])
            },
        ),
    ]
}
