//! Which experts were the tokens of a batch routed to?
//!
//! What a row of `routing/` holds is packed into one tensor for each layer on the network's thread, brought to main memory
//! like activations are, and taken apart by the thread that writes.

use std::cell::RefCell;

use data::hook_point::{HookPoint, Site};
use data::manifest::Routing;
use data::routing::RoutingColumns;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::gemma::model::to_vec_f32;
use crate::hook::Hooks;

/// What is read of every layer that routes.
const SITES: [Site; 6] =
    [Site::RouterLogits, Site::RouterProbs, Site::TopkIdx, Site::TopkWeight, Site::DenseOut, Site::MoeOut];

/// Listens to the routers of one forward pass.
pub(super) struct Listener<'a> {
    routing: &'a Routing,
    heard: Vec<[RefCell<Option<Tensor>>; SITES.len()]>,
}

impl<'a> Listener<'a> {
    pub(super) fn new(routing: &'a Routing) -> Self {
        Self { routing, heard: routing.layers.iter().map(|_| Default::default()).collect() }
    }

    pub(super) fn attach<'h>(&'h self, hooks: &mut Hooks<'h>) {
        for (&layer, heard) in self.routing.layers.iter().zip(&self.heard) {
            for (site, slot) in SITES.into_iter().zip(heard) {
                hooks.read(HookPoint::block(site, layer), |_, value| {
                    slot.replace(Some(value.shallow_clone()));
                });
            }
        }
    }

    /// One tensor for each layer, f32: see [`unpack`] for its columns. `[tok, 3·top_k + 3 (+ n_experts)]`
    pub(super) fn finish(self) -> Result<Vec<Tensor>> {
        let pack = |(&layer, heard): (&usize, [RefCell<Option<Tensor>>; SITES.len()])| {
            let mut values = Vec::with_capacity(SITES.len());
            for (slot, site) in heard.into_iter().zip(SITES) {
                let value = slot.into_inner().ok_or(Error::NotReached { point: HookPoint::block(site, layer) })?;
                values.push(value);
            }
            let [logits, probs, experts, weights, dense, routed] = &values[..] else {
                unreachable!("one for each site")
            };
            let norm = |x: &Tensor| x.to_kind(Kind::Float).norm_scalaropt_dim(2, [-1], true);
            let entropy = -probs.special_xlogy(probs).sum_dim_intlist(-1, true, Kind::Float);
            let chosen = probs.gather(1, experts, false);
            let mut columns =
                vec![experts.to_kind(Kind::Float), weights.shallow_clone(), chosen, entropy, norm(dense), norm(routed)];
            if self.routing.router_logits {
                columns.push(logits.to_kind(Kind::Float));
            }
            Ok(Tensor::cat(&columns, 1))
        };
        self.routing.layers.iter().zip(self.heard).map(pack).collect()
    }
}

/// Takes a packed tensor apart: experts, weights and probabilities of the choices; entropy; norms of the dense and of the
/// routed branch; all logits where they are recorded.
pub(super) fn unpack(packed: &Tensor, routing: &Routing) -> RoutingColumns {
    let k = routing.top_k as i64;
    let mut start = 0;
    let mut next = |width: i64| {
        start += width;
        to_vec_f32(&packed.narrow(1, start - width, width))
    };
    RoutingColumns {
        expert_ids: next(k).into_iter().map(|expert| expert as u16).collect(),
        weights: next(k),
        probs: next(k),
        entropy: next(1),
        dense_norm: next(1),
        moe_norm: next(1),
        router_logits: routing.router_logits.then(|| next(routing.n_experts as i64)),
    }
}
