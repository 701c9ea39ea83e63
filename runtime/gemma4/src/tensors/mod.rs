//! Every tensor of a checkpoint: name, shape, what it belongs to and what it does.
//!
//! Invariant: [`tensors`] lists exactly what a published checkpoint holds for a configuration, each tensor once, in the
//! order of the model. Tensors that are shipped but never read (keys and values of layers that borrow them) are listed with
//! `used: false`, so that sizes on disk and sizes in memory come from the same list.

mod count;
mod media;
mod text;

use crate::Config;

pub use count::{Components, parameters};

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the safetensors files, prefix included.
    pub name: String,
    /// Shape as stored. Linear layers are `[out, in]`. Empty for a scalar.
    pub shape: Vec<u64>,
    /// What it is counted under.
    pub component: Component,
    /// Index of its layer, counted in its own stack (language model, vision tower or audio tower).
    pub layer: Option<usize>,
    /// What it does. In the language model a layer has at most one tensor of each role.
    pub role: Role,
    /// Whether the model reads it.
    pub used: bool,
}

impl Tensor {
    /// Number of elements; 1 for a scalar.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, &size| product.saturating_mul(size))
    }
}

/// What a tensor is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Token embedding, which is also the head where the two are tied.
    TokenEmbedding,
    /// A head of its own, where the two are not tied.
    Head,
    /// The table of per-layer embeddings.
    PerLayerTable,
    /// Projections, gates and norms of the per-layer embeddings.
    PerLayerProjection,
    /// Projections of attention.
    Attention,
    /// Dense MLP.
    Mlp,
    /// Experts.
    Experts,
    /// Router of the experts and its scales.
    Router,
    /// Other norms and the layer scalars.
    Norm,
    /// Image encoder and its projection.
    Vision,
    /// Audio encoder and its projection.
    Audio,
}

impl Component {
    /// All components.
    pub const ALL: [Self; 11] = [
        Self::TokenEmbedding,
        Self::Head,
        Self::PerLayerTable,
        Self::PerLayerProjection,
        Self::Attention,
        Self::Mlp,
        Self::Experts,
        Self::Router,
        Self::Norm,
        Self::Vision,
        Self::Audio,
    ];

    /// Whether the component belongs to the language model.
    #[must_use]
    pub const fn is_text(self) -> bool {
        !matches!(self, Self::Vision | Self::Audio)
    }
}

/// What a tensor does. Shapes use the dimension names of the crate's documentation; `h` and `kv` are heads times head width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Token embedding `[V, H]`.
    Embedding,
    /// Head of its own `[V, H]`.
    Head,
    /// Norm before the head `[H]`.
    FinalNorm,
    /// Per-layer embeddings `[V, L*P]`.
    PerLayerTable,
    /// From the input to all per-layer embeddings `[L*P, H]`.
    PerLayerModelProjection,
    /// Norm of that projection `[P]`.
    PerLayerProjectionNorm,
    /// Queries `[h, H]`.
    QProj,
    /// Keys, and values where the two are equal `[kv, H]`.
    KProj,
    /// Values `[kv, H]`.
    VProj,
    /// Output of attention `[H, h]`.
    OProj,
    /// Norm of each query head `[head_dim]`.
    QNorm,
    /// Norm of each key head `[head_dim]`.
    KNorm,
    /// Norm before attention `[H]`.
    InputNorm,
    /// Norm after attention `[H]`.
    PostAttentionNorm,
    /// Norm before the dense MLP `[H]`.
    PreFeedforwardNorm,
    /// Norm after the feed-forward part `[H]`.
    PostFeedforwardNorm,
    /// Norm after the dense MLP of a layer with experts `[H]`.
    PostDenseNorm,
    /// Norm before the experts `[H]`.
    PreExpertsNorm,
    /// Norm after the experts `[H]`.
    PostExpertsNorm,
    /// Gate of the dense MLP `[I, H]`.
    GateProj,
    /// Up projection of the dense MLP `[I, H]`.
    UpProj,
    /// Down projection of the dense MLP `[H, I]`.
    DownProj,
    /// Gate (rows `0..I`) and up projection (rows `I..2I`) of all experts `[E, 2*I, H]`.
    ExpertsGateUp,
    /// Down projection of all experts `[E, H, I]`.
    ExpertsDown,
    /// Router `[E, H]`.
    RouterProj,
    /// Scale of the router's input `[H]`.
    RouterScale,
    /// Scale of each expert's weight `[E]`.
    PerExpertScale,
    /// One number that multiplies the stream after the layer `[1]`.
    LayerScalar,
    /// Gate of the per-layer embedding `[P, H]`.
    PerLayerInputGate,
    /// From the gated per-layer embedding back to the stream `[H, P]`.
    PerLayerProjection,
    /// Norm after that `[H]`.
    PostPerLayerInputNorm,
    /// Patches to the tower `[D, 3*patch^2]`.
    VisionPatch,
    /// Bias of the patch embedding of unified models `[D]`.
    VisionPatchBias,
    /// Positions: `[2, positions, D]` in a tower, `[positions, 2, D]` in unified models.
    VisionPositions,
    /// Queries of the vision tower `[h, D]`.
    VisionQ,
    /// Keys `[h, D]`.
    VisionK,
    /// Values `[h, D]`.
    VisionV,
    /// Output of attention `[D, h]`.
    VisionO,
    /// Gate of the MLP `[I, D]`.
    VisionMlpGate,
    /// Up projection of the MLP `[I, D]`.
    VisionMlpUp,
    /// Down projection of the MLP `[D, I]`.
    VisionMlpDown,
    /// A norm (weight or bias) of the image encoder.
    VisionNorm,
    /// Bias of the standardization `[D]`.
    VisionStdBias,
    /// Scale of the standardization `[D]`.
    VisionStdScale,
    /// From the image encoder to the language model `[H, D]`.
    VisionProjector,
    /// A bound of a clipped linear layer of a tower: a scalar.
    ClipScalar,
    /// A subsampling convolution `[out, in, 3, 3]`.
    AudioConv,
    /// From the convolutions to the tower `[D, channels0/4 * channels1]`.
    AudioInput,
    /// A linear layer of a block's feed-forward parts.
    AudioFeedForward,
    /// A linear layer of a block's attention `[D, D]`.
    AudioAttention,
    /// Scale of each dimension of an attention head `[D/heads]`.
    AudioPerDimScale,
    /// A linear layer of a block's convolution part.
    AudioConvLinear,
    /// The depthwise convolution `[D, 1, taps]`.
    AudioDepthwiseConv,
    /// A norm of the audio tower.
    AudioNorm,
    /// What leaves the tower, weight `[out, D]` or bias `[out]`.
    AudioOutput,
    /// From the audio encoder to the language model `[H, out]`.
    AudioProjector,
}

/// All tensors of a checkpoint of this configuration.
///
/// Names and shapes follow the published files (the loaders of transformers 5.23, vLLM 0.33 and tpu-inference 0.32 agree).
#[must_use]
pub fn tensors(config: &Config) -> Vec<Tensor> {
    let mut list = List::default();
    text::push(&mut list, config);
    if let Some(vision) = &config.vision {
        media::push_vision(&mut list, vision, config.text.hidden_size);
    }
    if let Some(audio) = &config.audio {
        media::push_audio(&mut list, audio, config.text.hidden_size);
    }
    list.tensors
}

/// Collects tensors under a name prefix.
#[derive(Default)]
struct List {
    tensors: Vec<Tensor>,
    prefix: String,
    layer: Option<usize>,
}

impl List {
    /// What the following names start with, and the layer they belong to.
    fn at(&mut self, prefix: String, layer: Option<usize>) {
        self.prefix = prefix;
        self.layer = layer;
    }

    fn push(&mut self, name: &str, shape: &[u64], component: Component, role: Role) {
        self.push_if(true, name, shape, component, role);
    }

    fn push_if(&mut self, used: bool, name: &str, shape: &[u64], component: Component, role: Role) {
        let name = format!("{}{name}", self.prefix);
        let (shape, layer) = (shape.to_vec(), self.layer);
        self.tensors.push(Tensor { name, shape, component, layer, role, used });
    }
}
