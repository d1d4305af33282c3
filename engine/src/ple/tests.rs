use std::path::{Path, PathBuf};

use super::*;
use crate::gemma::model::Precision;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn weights(name: &str) -> Weights {
    Weights::open(fixture(name)).unwrap()
}

fn look(weights: &Weights, ids: &[u32], layers: &[usize], top: usize) -> Vec<TokenRows> {
    token_rows(weights, ids, layers, top, &mut |_, _| ControlFlow::Continue(())).unwrap().unwrap()
}

/// The same by comparing everything with everything, in f64.
fn by_hand(weights: &Weights, row: u32, layer: usize) -> (f64, Vec<(u32, f64)>) {
    let d_ple = weights.config().ple.unwrap().d_ple as i64;
    let table = weights.tensor(TABLE, Kind::Float).unwrap().to_kind(Kind::Double);
    let parts = table.narrow(1, layer as i64 * d_ple, d_ple);
    let part = parts.get(i64::from(row));
    let norm = part.norm().double_value(&[]);
    let norms = parts.square().sum_dim_intlist(1, false, Kind::Double).sqrt();
    let cosines = Vec::<f64>::try_from(parts.mv(&part) / norms / norm).unwrap();
    let mut others: Vec<(u32, f64)> = (0..).zip(cosines).filter(|(other, _)| *other != row).collect();
    others.sort_by(|a, b| b.1.total_cmp(&a.1));
    (norm * (d_ple as f64).sqrt(), others)
}

#[test]
fn the_nearest_rows_are_those_of_a_search_by_hand() {
    for name in ["gemma4/e", "gemma3n/text"] {
        let weights = weights(name);
        let (ids, layers) = ([7, 130, 0], [5, 0, 1, 5]);
        let found = look(&weights, &ids, &layers, 9);
        assert_eq!(found.iter().map(|token| token.id).collect::<Vec<_>>(), ids);
        for token in &found {
            assert_eq!(token.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), layers);
            for layer in &token.layers {
                let (norm, others) = by_hand(&weights, token.row, layer.layer);
                assert!((f64::from(layer.norm) / norm - 1.0).abs() < 1e-5, "{name} {layer:?}");
                let rows: Vec<u32> = layer.nearest.iter().map(|near| near.row).collect();
                assert_eq!(rows, others[..9].iter().map(|(row, _)| *row).collect::<Vec<_>>(), "{name} {layer:?}");
                for (near, (_, cosine)) in layer.nearest.iter().zip(&others) {
                    assert!((f64::from(near.cosine) - cosine).abs() < 1e-5, "{name} {near:?} {cosine}");
                }
            }
        }
    }
}

#[test]
fn equals_are_in_the_order_of_their_rows_and_no_more_than_asked_for() {
    let mut nearest = Nearest(vec![Vec::new()]);
    for (row, cosine) in [(5, 0.5), (9, 0.7), (3, 0.5), (1, 0.1), (4, 0.5)] {
        nearest.insert(0, Neighbor { row, cosine }, 3);
    }
    assert_eq!(nearest.0[0].iter().map(|near| near.row).collect::<Vec<_>>(), [9, 3, 4]);
}

#[test]
fn a_search_reports_its_progress_and_can_be_broken_off() {
    let weights = weights("gemma4/e");
    let mut steps = Vec::new();
    let found = token_rows(&weights, &[1], &[0], 2, &mut |done, total| {
        steps.push((done, total));
        if done < 100 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(found.unwrap(), None);
    assert_eq!(steps, [(100, 160)]);
    let unread = token_rows(&weights, &[1], &[0], 0, &mut |_, _| ControlFlow::Break(())).unwrap().unwrap();
    assert!(unread[0].layers[0].nearest.is_empty() && unread[0].layers[0].norm > 0.0);
}

#[test]
fn tokens_without_a_row_read_the_first_or_are_refused() {
    let gemma3n = weights("gemma3n/text");
    let found = look(&gemma3n, &[300, 0], &[2], 1);
    assert_eq!((found[0].row, found[1].row), (0, 0));
    assert_eq!(found[0].layers, found[1].layers);
    let search = |weights: &Weights, id| token_rows(weights, &[id], &[0], 1, &mut |_, _| ControlFlow::Continue(()));
    let error = search(&weights("gemma4/e"), 160).unwrap_err();
    assert_eq!(error.to_string(), "expected a token id below 160, found 160");
    let error = search(&weights("gemma3/text"), 1).unwrap_err().to_string();
    assert!(
        error.starts_with("expected a model with per-layer embeddings, found `gemma3_text` without\nhint: "),
        "{error}"
    );
}

#[test]
fn the_size_of_the_table_comes_from_the_headers() {
    let weights = weights("gemma4/e");
    let facts = facts(weights.config(), weights.infos()).unwrap();
    assert_eq!(facts, Facts { rows: 160, table_bytes: 160 * 64 * 2, bytes_per_token: 64 * 2 });
    let without = self::weights("gemma3/text");
    assert_eq!(super::facts(without.config(), without.infos()), None);
}

/// What the reference computed, at the places where the text has the token that stands at its second.
#[test]
fn gates_are_those_of_the_reference() {
    for (name, stream) in [("gemma4/e", "hook_resid_post_mlp"), ("gemma3n/text", "altup.hook_corrected")] {
        let model = Model::load(fixture(name), Precision::F32).unwrap();
        let stored = Tensor::read_safetensors(fixture(&format!("{name}.f32.safetensors"))).unwrap();
        let get = |key: &str| {
            let found = stored.iter().find(|(found, _)| found == &format!("one/{key}"));
            found.map_or_else(|| panic!("no `{key}` in {name}"), |(_, value)| value.to_kind(Kind::Double))
        };
        let ids: Vec<u32> = Vec::<f64>::try_from(get("ids")).unwrap().iter().map(|&id| id as u32).collect();
        let last = model.config().n_layers - 1;
        let found = occurrences(&model, &ids, &ids[1..2], &[last, 1]).unwrap();
        let places: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == ids[1]).collect();
        assert_eq!(found.iter().map(|place| place.position).collect::<Vec<_>>(), places);
        for (place, layer) in found.iter().flat_map(|place| place.layers.iter().map(move |layer| (place, layer))) {
            let at = place.position as i64;
            let whole = |key: &str| get(key).get(at).get(layer.layer as i64);
            let block = |key: &str| get(&format!("blocks.{}.{key}", layer.layer)).get(at);
            let (token, context) = (whole("hook_ple_token"), whole("hook_ple_context"));
            let gate = block("ple.hook_gate_pre");
            let stream = block(stream);
            let stream_norm = if stream.dim() == 1 {
                stream.norm()
            } else {
                let others = stream.narrow(0, 1, stream.size()[0] - 1);
                others.square().sum_dim_intlist(1, false, Kind::Double).mean(Kind::Double).sqrt()
            };
            let expected = [
                token.norm(),
                context.norm(),
                token.dot(&context) / token.norm() / context.norm(),
                gate.gt(0.0).to_kind(Kind::Double).mean(Kind::Double),
                gate.gelu("tanh").abs().mean(Kind::Double),
                block("ple.hook_out").norm(),
                stream_norm,
            ];
            let values = [
                layer.token_norm,
                layer.context_norm,
                layer.cosine,
                layer.gates_open,
                layer.mean_gate,
                layer.out_norm,
                layer.stream_norm,
            ];
            for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
                let expected = expected.double_value(&[]);
                assert!(
                    (f64::from(*value) - expected).abs() < 1e-4 * expected.abs().max(1.0),
                    "{name} {layer:?} {i} {expected}"
                );
            }
        }
    }
}
