//! Which columns do the files of a run have?

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use crate::{HookPointEntry, Routing};

/// Key of the Arrow field metadata that says how numbers are stored: `f32`, `bf16`, `f16`, `i8`.
pub(crate) const DTYPE_KEY: &str = "polariscope.dtype";
/// Key of the Arrow field metadata with the shape of one row, as JSON.
pub(crate) const SHAPE_KEY: &str = "polariscope.shape";
/// Key of the Arrow field metadata that names the column of scales, for i8.
pub(crate) const SCALE_KEY: &str = "polariscope.scale";

/// Bins of `act_hist`.
pub(crate) const ACT_BINS: usize = 64;

pub(crate) fn tokens() -> SchemaRef {
    schema([
        field("token_idx", DataType::UInt64),
        field("doc_id", DataType::UInt64),
        field("pos", DataType::UInt32),
        field("token_id", DataType::UInt32),
        field("token", DataType::Utf8),
        nullable("byte_start", DataType::UInt64),
        nullable("byte_end", DataType::UInt64),
        field("special", DataType::Boolean),
        field("modality", DataType::UInt8),
        nullable("nll", DataType::Float32),
    ])
}

pub(crate) fn documents() -> SchemaRef {
    schema([
        field("doc_id", DataType::UInt64),
        field("source", DataType::Utf8),
        field("n_tokens", DataType::UInt64),
        field("sha256", DataType::Utf8),
        nullable("meta", DataType::Utf8),
        field("first_token_idx", DataType::UInt64),
    ])
}

pub(crate) fn vocab() -> SchemaRef {
    schema([field("token_id", DataType::UInt32), field("token", DataType::Utf8)])
}

pub(crate) fn acts(entry: &HookPointEntry) -> SchemaRef {
    let shape: Vec<String> = entry.shape.iter().map(ToString::to_string).collect();
    let mut metadata =
        vec![(DTYPE_KEY.to_owned(), entry.dtype.to_string()), (SHAPE_KEY.to_owned(), format!("[{}]", shape.join(",")))];
    let mut fields = vec![field("token_idx", DataType::UInt64)];
    let scaled = entry.dtype == crate::Dtype::I8;
    if scaled {
        metadata.push((SCALE_KEY.to_owned(), "scale".to_owned()));
    }
    let act = field("act", DataType::FixedSizeBinary(entry.row_bytes() as i32));
    fields.push(act.with_metadata(metadata.into_iter().collect::<HashMap<_, _>>()));
    if scaled {
        fields.push(field("scale", DataType::Float32));
    }
    schema(fields)
}

pub(crate) fn routing(routing: &Routing) -> SchemaRef {
    let list = |name, data_type| field(name, DataType::FixedSizeList(item(data_type), routing.top_k as i32));
    let mut fields = vec![
        field("token_idx", DataType::UInt64),
        list("expert_ids", DataType::UInt16),
        list("weights", DataType::Float32),
        list("probs", DataType::Float32),
        field("entropy", DataType::Float32),
        field("dense_norm", DataType::Float32),
        field("moe_norm", DataType::Float32),
    ];
    if routing.router_logits {
        let metadata = [(DTYPE_KEY, crate::Dtype::F32.to_string()), (SHAPE_KEY, format!("[{}]", routing.n_experts))];
        let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        let row_bytes = routing.n_experts * size_of::<f32>();
        fields.push(field("router_logits", DataType::FixedSizeBinary(row_bytes as i32)).with_metadata(metadata));
    }
    schema(fields)
}

pub(crate) fn feature_acts() -> SchemaRef {
    schema([field("token_idx", DataType::UInt64), field("feature", DataType::UInt32), field("act", DataType::Float32)])
}

pub(crate) fn feature_stats() -> SchemaRef {
    schema([
        field("feature", DataType::UInt32),
        field("n_active", DataType::UInt64),
        field("frac_nonzero", DataType::Float64),
        field("mean_act", DataType::Float64),
        field("max_act", DataType::Float32),
        field("act_hist", DataType::FixedSizeList(item(DataType::UInt64), ACT_BINS as i32)),
        field("top_logits", DataType::List(item(DataType::Struct(logit_fields())))),
        field("bottom_logits", DataType::List(item(DataType::Struct(logit_fields())))),
        field("decoder_norm", DataType::Float32),
        nullable("encoder_norm", DataType::Float32),
        nullable("encoder_decoder_cosine", DataType::Float32),
        field("neighbours", DataType::List(item(DataType::Struct(neighbour_fields())))),
        nullable("first_fired", DataType::UInt64),
        nullable("last_fired", DataType::UInt64),
    ])
}

pub(crate) fn logit_fields() -> Fields {
    Fields::from(vec![field("token_id", DataType::UInt32), field("logit", DataType::Float32)])
}

pub(crate) fn neighbour_fields() -> Fields {
    Fields::from(vec![field("feature", DataType::UInt32), field("cosine", DataType::Float32)])
}

pub(crate) fn feature_examples() -> SchemaRef {
    schema([
        field("feature", DataType::UInt32),
        field("rank", DataType::UInt32),
        field("group", DataType::Utf8),
        field("token_idx", DataType::UInt64),
        field("act", DataType::Float32),
        field("context_start", DataType::UInt64),
        field("context_len", DataType::UInt32),
    ])
}

/// What lies between the bounds of a group of examples; activations are in the units of the coder.
pub(crate) fn feature_groups() -> SchemaRef {
    schema([
        field("feature", DataType::UInt32),
        field("group", DataType::Utf8),
        // The least and the greatest activation that belong to it.
        field("low", DataType::Float32),
        field("high", DataType::Float32),
        // Tokens at which the feature is active within these bounds; of equal-count groups, those of its ranks.
        field("n_active", DataType::UInt64),
    ])
}

/// Two features that fire together; `other` may be one of another coder.
pub(crate) fn feature_pairs() -> SchemaRef {
    schema([
        field("feature", DataType::UInt32),
        field("rank", DataType::UInt32),
        field("other", DataType::UInt32),
        // Tokens at which both are active.
        field("n_both", DataType::UInt64),
        // How many times as often as if they had nothing to do with each other.
        field("lift", DataType::Float64),
        // Of the tokens at which one of them is active, the share at which both are.
        field("jaccard", DataType::Float64),
        // Correlation of active or not, -1 to 1.
        field("phi", DataType::Float64),
        // Correlation of activations over all tokens, -1 to 1.
        field("pearson", DataType::Float64),
        // Of the activations over all tokens.
        field("cosine", DataType::Float64),
    ])
}

/// How a feature goes together with something else that is known of tokens.
pub(crate) fn feature_join() -> SchemaRef {
    schema([
        // Of the model, where what it is joined with has one.
        nullable("layer", DataType::UInt32),
        field("label", DataType::Utf8),
        // Among the features of the label, from 0; null where it is only the best label of its feature.
        nullable("rank", DataType::UInt32),
        field("feature", DataType::UInt32),
        // Tokens at which the feature is active, that have the label, and both.
        field("n_feature", DataType::UInt64),
        field("n_label", DataType::UInt64),
        field("n_both", DataType::UInt64),
        field("lift", DataType::Float64),
        // Bits.
        field("mutual_information", DataType::Float64),
        // The same after the labels were shuffled, bits.
        field("control", DataType::Float64),
        // The greatest control of the layer, bits.
        field("threshold", DataType::Float64),
    ])
}

pub(crate) fn metrics(columns: &[String]) -> SchemaRef {
    schema(columns.iter().map(|name| field(name, DataType::Float64)).collect::<Vec<_>>())
}

pub(crate) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, false))
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn nullable(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn schema(fields: impl Into<Vec<Field>>) -> SchemaRef {
    Arc::new(Schema::new(fields.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    /// The contract with everyone who has DuckDB or Polars: a change here is a new version of the format.
    #[test]
    fn columns_are_as_documented() {
        let show = |schema: SchemaRef| {
            let columns = schema.fields().iter().map(|f| {
                let null = if f.is_nullable() { "?" } else { "" };
                format!("{} {}{null}", f.name(), f.data_type())
            });
            columns.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(
            show(tokens()),
            "token_idx UInt64, doc_id UInt64, pos UInt32, token_id UInt32, token Utf8, byte_start UInt64?, \
             byte_end UInt64?, special Boolean, modality UInt8, nll Float32?"
        );
        assert_eq!(
            show(documents()),
            "doc_id UInt64, source Utf8, n_tokens UInt64, sha256 Utf8, meta Utf8?, first_token_idx UInt64"
        );
        assert_eq!(show(feature_acts()), "token_idx UInt64, feature UInt32, act Float32");
        assert_eq!(
            show(feature_examples()),
            "feature UInt32, rank UInt32, group Utf8, token_idx UInt64, act Float32, context_start UInt64, \
             context_len UInt32"
        );
        assert_eq!(show(feature_groups()), "feature UInt32, group Utf8, low Float32, high Float32, n_active UInt64");
        assert_eq!(
            show(feature_pairs()),
            "feature UInt32, rank UInt32, other UInt32, n_both UInt64, lift Float64, jaccard Float64, phi Float64, \
             pearson Float64, cosine Float64"
        );
        assert_eq!(
            show(feature_join()),
            "layer UInt32?, label Utf8, rank UInt32?, feature UInt32, n_feature UInt64, n_label UInt64, n_both UInt64, \
             lift Float64, mutual_information Float64, control Float64, threshold Float64"
        );
        let names: Vec<String> = feature_stats().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(
            names.join(" "),
            "feature n_active frac_nonzero mean_act max_act act_hist top_logits bottom_logits decoder_norm \
             encoder_norm encoder_decoder_cosine neighbours first_fired last_fired"
        );
        let experts = Routing { n_experts: 16, top_k: 2, layers: vec![3], router_logits: true };
        assert_eq!(
            show(routing(&experts)),
            "token_idx UInt64, expert_ids FixedSizeList(2 x non-null UInt16), \
             weights FixedSizeList(2 x non-null Float32), probs FixedSizeList(2 x non-null Float32), \
             entropy Float32, dense_norm Float32, moe_norm Float32, router_logits FixedSizeBinary(64)"
        );
        let hook = "blocks.0.attn.hook_z".parse().unwrap();
        let entry = HookPointEntry { name: hook, width: 1024, dtype: Dtype::I8, shape: vec![4, 256] };
        assert_eq!(show(acts(&entry)), "token_idx UInt64, act FixedSizeBinary(1024), scale Float32");
        let schema = acts(&entry);
        let metadata = schema.field(1).metadata();
        assert_eq!(metadata.get(DTYPE_KEY).map(String::as_str), Some("i8"));
        assert_eq!(metadata.get(SHAPE_KEY).map(String::as_str), Some("[4,256]"));
        assert_eq!(metadata.get(SCALE_KEY).map(String::as_str), Some("scale"));
    }
}
