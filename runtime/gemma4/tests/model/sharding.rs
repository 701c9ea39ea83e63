//! Tensor parallelism.

use gemma4_model::DType;
use gemma4_model::sharding::{
    Axis, ExpertSharding, Mesh, Placement, ShardingError, bytes_per_device, check_mesh, place,
};
use gemma4_model::tensors::{Component, Role, Tensor, tensors};

use crate::data::{B12, B26, B31, E2B, E4B, FIXTURES, config};

const TENSOR: ExpertSharding = ExpertSharding::Tensor;

fn mesh(model: u64) -> Mesh {
    Mesh { data: 1, model }
}

/// The tensor of a role in a layer, and its placement.
fn placed(bytes: &[u8], layer: Option<usize>, role: Role, tp: u64, experts: ExpertSharding) -> (Tensor, Placement) {
    let config = config(bytes);
    let mut list = tensors(&config).into_iter();
    let tensor = list.find(|t| t.layer == layer && t.role == role).expect("the tensor");
    let placement = place(&config, &tensor, &mesh(tp), experts).expect("a placement");
    (tensor, placement)
}

/// Start and end of the stored rows that a device holds.
fn rows(placement: &Placement, tensor: &Tensor, rank: u64) -> Vec<(u64, u64)> {
    let ranges = placement.source_ranges(tensor, rank).into_iter();
    ranges.map(|rows| (rows.start, rows.end)).collect()
}

#[test]
fn columns_and_rows_of_e2b_on_four_devices() {
    let model = Some(Axis::Model);
    let cases = [
        (Role::QProj, vec![model, None], vec![512, 1536]),
        (Role::OProj, vec![None, model], vec![1536, 512]),
        (Role::GateProj, vec![model, None], vec![1536, 1536]),
        (Role::UpProj, vec![model, None], vec![1536, 1536]),
        (Role::DownProj, vec![None, model], vec![1536, 1536]),
        (Role::PerLayerInputGate, vec![None, None], vec![256, 1536]),
        (Role::PerLayerProjection, vec![None, None], vec![1536, 256]),
        (Role::QNorm, vec![None], vec![256]),
        (Role::LayerScalar, vec![None], vec![1]),
    ];
    for (role, spec, local) in cases {
        let (_, placement) = placed(E2B, Some(0), role, 4, TENSOR);
        assert_eq!((placement.spec, placement.local_shape), (spec, local), "{role:?}");
    }
    let (_, embedding) = placed(E2B, None, Role::Embedding, 4, TENSOR);
    assert_eq!(embedding.local_shape, [65536, 1536]);
    let (_, table) = placed(E2B, None, Role::PerLayerTable, 4, TENSOR);
    assert_eq!(table.local_shape, [65536, 35 * 256]);
    assert_eq!(table.spec, [model, None]);
    let (_, projection) = placed(E2B, None, Role::PerLayerModelProjection, 4, TENSOR);
    assert_eq!(projection.local_shape, [35 * 256, 1536]);
}

#[test]
fn bytes_of_e2b_on_four_devices() {
    // GiB per device measured on vLLM's TPU path, which splits these components alike: embedding 0.1875, PLE table 1.0938,
    // MLP 0.4834 + 0.2417; the three PLE projections, held whole, 0.0256 each.
    let bytes = bytes_per_device(&config(E2B), &mesh(4), TENSOR, DType::Bf16).expect("fits");
    let gib = |component| {
        let found = bytes.iter().find(|(c, _)| *c == component).map_or(0, |(_, bytes)| *bytes);
        (found * 10_000 + (1 << 29)) >> 30
    };
    assert_eq!(gib(Component::TokenEmbedding), 1875);
    assert_eq!(gib(Component::PerLayerTable), 10938);
    assert_eq!(gib(Component::Mlp), 7251);
    // 3 x 0.0256 and the norms among them.
    assert_eq!(gib(Component::PerLayerProjection), 770);
}

#[test]
fn one_device_holds_everything() {
    for bytes in [E2B, E4B, B12, B26, B31] {
        let config = config(bytes);
        for experts in [ExpertSharding::Tensor, ExpertSharding::Expert] {
            for tensor in tensors(&config) {
                let placement = place(&config, &tensor, &mesh(1), experts).expect("a placement");
                assert_eq!(placement.local_shape, tensor.shape, "{}", tensor.name);
                assert!(!placement.replicated_kv());
            }
        }
    }
}

#[test]
fn few_heads_are_replicated() {
    // One head on four devices: each has it.
    let (tensor, k) = placed(E2B, Some(0), Role::KProj, 4, TENSOR);
    assert_eq!((k.local_shape.as_slice(), k.replication), (&[256, 1536][..], 4));
    assert_eq!(k.spec, [Some(Axis::Model), None]);
    assert_eq!(rows(&k, &tensor, 3), [(0, 256)]);
    // Four heads of 512 on eight devices: pairs of neighbours share one.
    let (tensor, k) = placed(B31, Some(5), Role::KProj, 8, TENSOR);
    assert_eq!((k.local_shape.as_slice(), k.replication), (&[512, 5376][..], 2));
    assert_eq!(rows(&k, &tensor, 4), [(1024, 1536)]);
    assert_eq!(rows(&k, &tensor, 5), [(1024, 1536)]);
    // Sixteen heads of 256 on eight devices: two each.
    let (tensor, v) = placed(B31, Some(0), Role::VProj, 8, TENSOR);
    assert_eq!((v.local_shape.as_slice(), v.replication), (&[512, 5376][..], 1));
    assert_eq!(rows(&v, &tensor, 7), [(3584, 4096)]);
}

#[test]
fn a_device_has_the_key_heads_of_its_query_heads() {
    for (bytes, layer) in [(E2B, 4), (E4B, 5), (B12, 5), (B26, 5), (B31, 5), (B31, 0)] {
        let text = config(bytes).text;
        let (heads, dim) = (text.layers[layer].kv_heads, text.layers[layer].head_dim);
        for tp in [1, 2, 4, 8] {
            let (q, q_placement) = placed(bytes, Some(layer), Role::QProj, tp, TENSOR);
            let (k, k_placement) = placed(bytes, Some(layer), Role::KProj, tp, TENSOR);
            for rank in 0..tp {
                let q_rows = q_placement.source_ranges(&q, rank)[0].clone();
                let k_rows = k_placement.source_ranges(&k, rank)[0].clone();
                for query in q_rows.start / dim..q_rows.end / dim {
                    let key = query / (text.query_heads / heads);
                    assert!(k_rows.contains(&(key * dim)), "head {query} on device {rank}");
                }
            }
        }
    }
}

#[test]
fn experts_by_width_keep_gate_and_up_together() {
    let (tensor, gate_up) = placed(B26, Some(0), Role::ExpertsGateUp, 4, TENSOR);
    assert_eq!(gate_up.local_shape, [128, 352, 2816]);
    assert_eq!(gate_up.spec, [None, Some(Axis::Model), None]);
    assert_eq!(rows(&gate_up, &tensor, 1), [(176, 352), (880, 1056)]);
    let (tensor, down) = placed(B26, Some(0), Role::ExpertsDown, 4, TENSOR);
    assert_eq!(down.local_shape, [128, 2816, 176]);
    assert_eq!(rows(&down, &tensor, 1), [(176, 352)]);
}

#[test]
fn experts_can_be_dealt_out_whole() {
    for (role, local) in [(Role::ExpertsGateUp, [32, 1408, 2816]), (Role::ExpertsDown, [32, 2816, 704])] {
        let (tensor, placement) = placed(B26, Some(0), role, 4, ExpertSharding::Expert);
        assert_eq!(placement.local_shape, local);
        assert_eq!(rows(&placement, &tensor, 3), [(96, 128)]);
    }
    // 704 does not divide by 128, 128 experts do.
    let config = config(B26);
    let divides = |experts| {
        let list = tensors(&config).into_iter().filter(|t| t.component == Component::Experts);
        list.map(|t| place(&config, &t, &mesh(128), experts)).all(|placed| placed.is_ok())
    };
    assert!(divides(ExpertSharding::Expert));
    assert!(!divides(ExpertSharding::Tensor));
}

#[test]
fn parts_cover_each_tensor_once_per_copy() {
    let sources = FIXTURES.iter().map(|fixture| fixture.published);
    for bytes in sources.chain([E2B, E4B, B12, B26, B31]) {
        let config = config(bytes);
        for experts in [ExpertSharding::Tensor, ExpertSharding::Expert] {
            for tensor in tensors(&config) {
                let placement = place(&config, &tensor, &mesh(4), experts).expect("a placement");
                let Some(dimension) = placement.split_dimension() else { continue };
                let mut ranges = Vec::new();
                for rank in 0..4 {
                    let own = placement.source_ranges(&tensor, rank);
                    let rows: u64 = own.iter().map(|rows| rows.end - rows.start).sum();
                    assert_eq!(rows, placement.local_shape[dimension], "{}", tensor.name);
                    ranges.extend(own);
                }
                ranges.sort_by_key(|rows| rows.start);
                let copies = usize::try_from(placement.replication).expect("small");
                let mut next = 0;
                for group in ranges.chunks(copies) {
                    assert!(group.iter().all(|rows| *rows == group[0]), "{}", tensor.name);
                    assert_eq!(group[0].start, next, "{}", tensor.name);
                    next = group[0].end;
                }
                assert_eq!(next, tensor.shape[dimension], "{}", tensor.name);
            }
        }
    }
}

#[test]
fn good_meshes_have_no_violations() {
    for bytes in [E2B, E4B, B12, B26, B31] {
        for model in [1, 2, 4, 8] {
            for experts in [ExpertSharding::Tensor, ExpertSharding::Expert] {
                let mesh = Mesh { data: 2, model };
                assert_eq!(check_mesh(&config(bytes), &mesh, experts), []);
            }
        }
    }
}

#[test]
fn bad_meshes_are_explained_once_for_each_reason() {
    let messages = |bytes: &[u8], model| {
        let found = check_mesh(&config(bytes), &mesh(model), TENSOR);
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let prefix = "model.language_model.";
    assert_eq!(
        messages(E2B, 16),
        [format!("{prefix}layers.0.self_attn.q_proj.weight: 8 query heads cannot be split over 16 devices")]
    );
    assert_eq!(
        messages(B26, 3),
        [
            format!("{prefix}embed_tokens.weight: 262144 vocabulary rows cannot be split over 3 devices"),
            format!("{prefix}layers.0.self_attn.q_proj.weight: 16 query heads cannot be split over 3 devices"),
            format!(
                "{prefix}layers.0.self_attn.k_proj.weight: 8 key/value heads on 3 devices; one has to be a multiple of the other"
            ),
            format!("{prefix}layers.0.experts.gate_up_proj: 704 columns of an expert cannot be split over 3 devices"),
            format!(
                "{prefix}layers.5.self_attn.k_proj.weight: 2 key/value heads on 3 devices; one has to be a multiple of the other"
            ),
        ]
    );
    let empty = check_mesh(&config(E2B), &Mesh { data: 0, model: 4 }, TENSOR);
    assert_eq!(empty, [ShardingError::EmptyMesh { data: 0, model: 4 }]);
}

#[test]
fn foreign_tensors_are_refused() {
    let tensor = Tensor {
        name: "layers.99.k".to_owned(),
        shape: vec![1],
        component: Component::Attention,
        layer: Some(99),
        role: Role::KProj,
        used: true,
    };
    let error = place(&config(E2B), &tensor, &mesh(2), TENSOR);
    assert_eq!(error, Err(ShardingError::Foreign { tensor: "layers.99.k".to_owned() }));
    let down = Tensor { role: Role::ExpertsDown, ..tensor };
    let error = place(&config(E2B), &down, &mesh(2), TENSOR);
    assert!(matches!(error, Err(ShardingError::Foreign { .. })));
}
