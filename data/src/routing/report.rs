//! What is told of the experts of a layer, and by which formulas?
//!
//! `T` tokens are counted, each with `k` of `E` experts; `n_e` of them chose the expert `e`, and `P(e) = n_e / T`, so that
//! the `P(e)` add up to `k`.

use serde::Serialize;

/// The routing of a run, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoutingReport {
    pub n_experts: usize,
    pub top_k: usize,
    /// `T`
    pub n_tokens: u64,
    /// Tokens that were left out because they are special.
    pub n_special: u64,
    /// Pairs of experts, and of token and expert, that were seen less often are not among the `top_*`.
    pub min_count: u64,
    pub layers: Vec<LayerRouting>,
}

/// The routing of a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerRouting {
    pub layer: usize,
    /// `T`
    pub n_tokens: u64,
    /// Mean over the tokens of −Σ p ln p of the router's full distribution, nats; at most ln `E`.
    pub router_entropy: Option<f64>,
    /// Mean L2 norm of the dense branch, after its norm.
    pub dense_norm: Option<f64>,
    /// Mean L2 norm of the routed branch, after its norm.
    pub moe_norm: Option<f64>,
    pub load: LoadBalance,
    pub neighbours: NeighbourOverlap,
    /// `None` for the last recorded layer.
    pub next_layer: Option<NextLayer>,
    /// By number.
    pub experts: Vec<ExpertLoad>,
    /// The pairs that are chosen together most above chance.
    pub top_pairs: Vec<PairLift>,
    /// `[E, E]`: `c_ab`, tokens that chose both; `n_e` on the diagonal.
    #[serde(skip)]
    pub co_selected: Vec<u64>,
}

/// How evenly a layer's tokens are spread over its experts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LoadBalance {
    /// Standard deviation of the `n_e` (over all `E`) divided by their mean; 0 is even.
    pub cv: Option<f64>,
    /// The greatest `n_e` divided by their mean; 1 is even, `E / k` is the worst.
    pub max_over_mean: Option<f64>,
    /// Experts that no token chose.
    pub never_fired: usize,
    /// −Σ s ln s over the shares `s_e = n_e / (k T)`, nats; ln `E` is even.
    pub entropy: Option<f64>,
}

/// What an expert was given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertLoad {
    pub expert: usize,
    /// `n_e`
    pub tokens: u64,
    /// `n_e / (k T)`: of all choices; the shares of a layer add up to 1.
    pub share: Option<f64>,
    /// Mean weight over the tokens that chose it.
    pub mean_weight: Option<f64>,
    /// Mean probability over the tokens that chose it.
    pub mean_prob: Option<f64>,
    /// The tokens that it takes most above chance.
    pub top_tokens: Vec<TokenLift>,
}

/// A token of the vocabulary that an expert takes.
///
/// Chance: the expert would be chosen as often for this token as for any, so that `n_t n_e / T` are expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLift {
    pub token_id: u32,
    /// Its text, lossless.
    pub token: String,
    /// `c_te`: how often it was there and chose the expert.
    pub count: u64,
    /// `n_t`: how often it was there.
    pub occurrences: u64,
    /// `n_t n_e / T`
    pub expected: f64,
    /// `P(e | t) / P(e)`, which is `count / expected`.
    pub lift: f64,
}

/// Two experts that are chosen for the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairLift {
    pub a: usize,
    pub b: usize,
    /// `c_ab`: tokens that chose both.
    pub tokens: u64,
    /// `n_a n_b / T`
    pub expected: f64,
    /// `P(a, b) / (P(a) P(b))`, which is `tokens / expected`. Since the experts of a token are different ones, choosing
    /// evenly at random gives `(k − 1) E / (k (E − 1))`, a little below 1.
    pub lift: f64,
}

/// How much of the choice stays from a token to the next of the same sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NeighbourOverlap {
    /// Pairs of tokens `t − 1`, `t`, both counted.
    pub pairs: u64,
    /// Mean of `|S_t ∩ S_{t−1}| / k`.
    pub overlap: Option<f64>,
    /// The same for two tokens that have nothing to do with each other: `Σ P(e)² / k`; `k / E` where the load is even.
    pub chance: Option<f64>,
}

/// How much the first choice of a layer tells of the first choice of the next recorded one.
///
/// The numbers of experts mean nothing from layer to layer, so this is the mutual information and not an overlap:
/// `Σ P(a, b) ln (P(a, b) / (P(a) P(b)))`, nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NextLayer {
    pub layer: usize,
    pub mutual_information: Option<f64>,
    /// What counting `T` tokens gives of itself where the layers have nothing to do with each other:
    /// `(A − 1)(B − 1) / (2 T)` for `A` and `B` experts that are ever first (Miller 1955).
    pub chance: Option<f64>,
    /// −Σ P(b) ln P(b): all that there is to tell.
    pub entropy: Option<f64>,
}

impl LayerRouting {
    /// The pairs that are chosen together most above chance, of at least `min_count` tokens, at most `top`;
    /// of one expert, which is then `a`, or of all.
    pub(super) fn pairs(&self, expert: Option<usize>, min_count: u64, top: usize) -> Vec<PairLift> {
        let n = self.experts.len();
        let mut pairs = Vec::new();
        for a in expert.map_or(0..n, |expert| expert..(expert + 1).min(n)) {
            for b in if expert.is_some() { 0..n } else { a + 1..n } {
                let tokens = self.co_selected[a * n + b];
                if a != b && tokens >= min_count.max(1) {
                    let expected = chance(self.experts[a].tokens, self.experts[b].tokens, self.n_tokens);
                    pairs.push(PairLift { a, b, tokens, expected, lift: tokens as f64 / expected });
                }
            }
        }
        pairs.sort_by(|x, y| y.lift.total_cmp(&x.lift).then(y.tokens.cmp(&x.tokens)).then((x.a, x.b).cmp(&(y.a, y.b))));
        pairs.truncate(top);
        pairs
    }
}

/// How often two things that have nothing to do with each other come together among `total` tokens.
pub(super) fn chance(a: u64, b: u64, total: u64) -> f64 {
    a as f64 * b as f64 / total as f64
}
