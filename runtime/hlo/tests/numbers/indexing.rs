//! Gather, scatter and products.

use gemma4_hlo::{Combine, DotDimensions, ElementType, GatherDimensions, Precision, ScatterDimensions};

use crate::cases::{Case, case, count, s32s};

pub(crate) fn all() -> Vec<Case> {
    vec![
        case(
            "gathers",
            vec![count(&[3, 2]), s32s(&[2, 2], &[2, 0, 1, 7]), s32s(&[3], &[1, 0, 1])],
            &[
                &[4.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                &[1.0, 0.0, 1.0, 3.0, 2.0, 3.0, 5.0, 4.0, 5.0],
                &[4.0, 3.0],
                &[1.0, 2.0, 5.0],
            ],
            |b, args| {
                let points = GatherDimensions {
                    collapsed_slice_dims: vec![0, 1],
                    start_index_map: vec![0, 1],
                    index_vector_dim: 1,
                    ..GatherDimensions::default()
                };
                let rows = GatherDimensions {
                    collapsed_slice_dims: vec![1],
                    operand_batching_dims: vec![0],
                    start_indices_batching_dims: vec![0],
                    start_index_map: vec![1],
                    index_vector_dim: 1,
                    ..GatherDimensions::default()
                };
                Ok(vec![
                    b.take(args[0], args[1], 0)?,
                    b.take(args[0], args[2], 1)?,
                    b.gather(args[0], args[1], &points, &[1, 1])?,
                    b.gather(args[0], args[2], &rows, &[1, 1])?,
                ])
            },
        ),
        case(
            "scatters",
            vec![count(&[3, 2]), s32s(&[2, 1], &[2, 0]), s32s(&[3, 1], &[1, 5, 1])],
            &[&[-3.0, -4.0, 2.0, 3.0, -1.0, -2.0], &[0.0, 1.0, 8.0, 13.0, 4.0, 5.0], &[1.0, 1.0, 2.0, 3.0, 4.0, 5.0]],
            |b, args| {
                let rows = ScatterDimensions {
                    update_window_dims: vec![1],
                    inserted_window_dims: vec![0],
                    scatter_dims_to_operand_dims: vec![0],
                    index_vector_dim: 1,
                    ..ScatterDimensions::default()
                };
                let unique = ScatterDimensions { unique_indices: true, ..rows.clone() };
                let two = b.constant(&[-1_f32, -2.0, -3.0, -4.0], &[2, 2])?;
                let three = b.constant(&[1_f32, 2.0, 3.0, 4.0, 5.0, 8.0], &[3, 2])?;
                let zero = b.splat(0_i32, &[1])?;
                let row = b.constant(&[1_f32, -9.0], &[2])?;
                let whole = ScatterDimensions {
                    update_window_dims: vec![0],
                    inserted_window_dims: vec![0],
                    scatter_dims_to_operand_dims: vec![0],
                    indices_are_sorted: true,
                    ..ScatterDimensions::default()
                };
                Ok(vec![
                    b.scatter(args[0], args[1], two, &unique, Combine::Replace)?,
                    b.scatter(args[0], args[2], three, &rows, Combine::Add)?,
                    b.scatter(args[0], zero, row, &whole, Combine::Maximum)?,
                ])
            },
        ),
        case(
            "dots",
            vec![count(&[2, 3]), count(&[4, 3]), count(&[2, 2, 2])],
            &[
                &[5.0, 14.0, 23.0, 32.0, 14.0, 50.0, 86.0, 122.0],
                &[5.0, 14.0, 23.0, 32.0, 14.0, 50.0, 86.0, 122.0],
                &[5.0, 14.0, 23.0, 32.0, 14.0, 50.0, 86.0, 122.0],
                &[1.0, 3.0, 3.0, 13.0, 41.0, 59.0, 59.0, 85.0],
                &[0.0, 0.0, 0.0, 6.0, 0.0, 2.0, 0.0, 8.0, 0.0, 4.0, 0.0, 10.0],
            ],
            |b, args| {
                let dims = DotDimensions::contract(1, 1);
                let narrow = [b.convert(args[0], ElementType::Bf16)?, b.convert(args[1], ElementType::Bf16)?];
                let bytes = [b.convert(args[0], ElementType::S8)?, b.convert(args[1], ElementType::S8)?];
                let square = DotDimensions {
                    left_batch: vec![0],
                    right_batch: vec![0],
                    left_contract: vec![2],
                    right_contract: vec![2],
                };
                let outer = DotDimensions { left_batch: vec![1], right_batch: vec![0], ..DotDimensions::default() };
                let column = b.iota(ElementType::F32, &[3, 2], 1)?;
                let column = b.add(column, column)?;
                let outer = b.dot_general(args[0], column, &outer, ElementType::F32, Precision::High)?;
                let outer = b.reshape(outer, &[12])?;
                Ok(vec![
                    b.dot_general(args[0], args[1], &dims, ElementType::F32, Precision::Highest)?,
                    b.dot_general(narrow[0], narrow[1], &dims, ElementType::F32, Precision::Default)?,
                    b.dot_general(bytes[0], bytes[1], &dims, ElementType::S32, Precision::Default)?,
                    b.dot_general(args[2], args[2], &square, ElementType::F32, Precision::Default)?,
                    outer,
                ])
            },
        ),
    ]
}
