//! How do statistics and examples of features become columns, and back?

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, Float64Array, ListArray, RecordBatch, StringArray,
    StructArray, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Fields, Float32Type, Float64Type, UInt32Type, UInt64Type};

use super::{ACT_BINS, Example, ExampleGroup, FeaturePair, FeatureStats};
use crate::error::Result;
use crate::join::JoinRow;
use crate::parquet_io::TableFile;
use crate::schema;

/// One row a feature.
pub(super) fn stats_batch(rows: &[FeatureStats]) -> RecordBatch {
    let hist = rows.iter().flat_map(|row| (0..ACT_BINS).map(|bin| row.act_hist.get(bin).copied().unwrap_or(0)));
    let hist = FixedSizeListArray::new(
        schema::item(DataType::UInt64),
        ACT_BINS as i32,
        Arc::new(UInt64Array::from_iter_values(hist)),
        None,
    );
    let top: Vec<&[(u32, f32)]> = rows.iter().map(|row| row.top_logits.as_slice()).collect();
    let bottom: Vec<&[(u32, f32)]> = rows.iter().map(|row| row.bottom_logits.as_slice()).collect();
    let neighbours: Vec<&[(u32, f32)]> = rows.iter().map(|row| row.neighbours.as_slice()).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.feature))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.n_active))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.frac_nonzero))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.mean_act))),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.max_act))),
        Arc::new(hist),
        Arc::new(pairs(schema::logit_fields(), &top)),
        Arc::new(pairs(schema::logit_fields(), &bottom)),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.decoder_norm))),
        Arc::new(rows.iter().map(|row| row.encoder_norm).collect::<Float32Array>()),
        Arc::new(rows.iter().map(|row| row.encoder_decoder_cosine).collect::<Float32Array>()),
        Arc::new(pairs(schema::neighbour_fields(), &neighbours)),
        Arc::new(rows.iter().map(|row| row.first_fired).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|row| row.last_fired).collect::<UInt64Array>()),
    ];
    RecordBatch::try_new(schema::feature_stats(), columns).expect("the columns are those of the schema")
}

pub(super) fn stats_rows(file: &TableFile, batch: &RecordBatch) -> Result<Vec<FeatureStats>> {
    let feature = file.primitive::<UInt32Type>(batch, "feature")?;
    let n_active = file.primitive::<UInt64Type>(batch, "n_active")?;
    let frac_nonzero = file.primitive::<Float64Type>(batch, "frac_nonzero")?;
    let mean_act = file.primitive::<Float64Type>(batch, "mean_act")?;
    let max_act = file.primitive::<Float32Type>(batch, "max_act")?;
    let decoder_norm = file.primitive::<Float32Type>(batch, "decoder_norm")?;
    let later = |column: &str| match file.require(column) {
        Ok(()) => file.optional::<Float32Type>(batch, column),
        // Of an older version.
        Err(_) => Ok(vec![None; feature.len()]),
    };
    let (encoder_norm, encoder_decoder_cosine) = (later("encoder_norm")?, later("encoder_decoder_cosine")?);
    let first_fired = file.optional::<UInt64Type>(batch, "first_fired")?;
    let last_fired = file.optional::<UInt64Type>(batch, "last_fired")?;
    let mut act_hist = histograms(file, batch)?.into_iter();
    let mut top = read_pairs(file, batch, "top_logits")?.into_iter();
    let mut bottom = read_pairs(file, batch, "bottom_logits")?.into_iter();
    let mut neighbours = read_pairs(file, batch, "neighbours")?.into_iter();
    Ok((0..feature.len())
        .map(|i| FeatureStats {
            feature: feature[i],
            n_active: n_active[i],
            frac_nonzero: frac_nonzero[i],
            mean_act: mean_act[i],
            max_act: max_act[i],
            act_hist: act_hist.next().unwrap_or_default(),
            top_logits: top.next().unwrap_or_default(),
            bottom_logits: bottom.next().unwrap_or_default(),
            decoder_norm: decoder_norm[i],
            encoder_norm: encoder_norm[i],
            encoder_decoder_cosine: encoder_decoder_cosine[i],
            neighbours: neighbours.next().unwrap_or_default(),
            first_fired: first_fired[i],
            last_fired: last_fired[i],
        })
        .collect())
}

pub(super) fn example_batch(rows: &[Example]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.feature))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.rank))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.group))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.token_idx))),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.act))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.context_start))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.context_len))),
    ];
    RecordBatch::try_new(schema::feature_examples(), columns).expect("the columns are those of the schema")
}

pub(super) fn example_rows(file: &TableFile, batch: &RecordBatch) -> Result<Vec<Example>> {
    let feature = file.primitive::<UInt32Type>(batch, "feature")?;
    let rank = file.primitive::<UInt32Type>(batch, "rank")?;
    let group = file.strings(batch, "group")?;
    let token_idx = file.primitive::<UInt64Type>(batch, "token_idx")?;
    let act = file.primitive::<Float32Type>(batch, "act")?;
    let context_start = file.primitive::<UInt64Type>(batch, "context_start")?;
    let context_len = file.primitive::<UInt32Type>(batch, "context_len")?;
    Ok(group
        .into_iter()
        .enumerate()
        .map(|(i, group)| Example {
            feature: feature[i],
            rank: rank[i],
            group: group.unwrap_or_default(),
            token_idx: token_idx[i],
            act: act[i],
            context_start: context_start[i],
            context_len: context_len[i],
        })
        .collect())
}

pub(super) fn group_batch(rows: &[ExampleGroup]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.feature))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.group))),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.low))),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.high))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.n_active))),
    ];
    RecordBatch::try_new(schema::feature_groups(), columns).expect("the columns are those of the schema")
}

pub(super) fn group_rows(file: &TableFile, batch: &RecordBatch) -> Result<Vec<ExampleGroup>> {
    let feature = file.primitive::<UInt32Type>(batch, "feature")?;
    let group = file.strings(batch, "group")?;
    let low = file.primitive::<Float32Type>(batch, "low")?;
    let high = file.primitive::<Float32Type>(batch, "high")?;
    let n_active = file.primitive::<UInt64Type>(batch, "n_active")?;
    Ok(group
        .into_iter()
        .enumerate()
        .map(|(i, group)| ExampleGroup {
            feature: feature[i],
            group: group.unwrap_or_default(),
            low: low[i],
            high: high[i],
            n_active: n_active[i],
        })
        .collect())
}

pub(super) fn pair_batch(rows: &[FeaturePair]) -> RecordBatch {
    let number = |of: fn(&FeaturePair) -> f64| Arc::new(Float64Array::from_iter_values(rows.iter().map(of)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.feature))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.rank))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.other))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.n_both))),
        number(|row| row.lift),
        number(|row| row.jaccard),
        number(|row| row.phi),
        number(|row| row.pearson),
        number(|row| row.cosine),
    ];
    RecordBatch::try_new(schema::feature_pairs(), columns).expect("the columns are those of the schema")
}

pub(super) fn pair_rows(file: &TableFile, batch: &RecordBatch) -> Result<Vec<FeaturePair>> {
    let feature = file.primitive::<UInt32Type>(batch, "feature")?;
    let rank = file.primitive::<UInt32Type>(batch, "rank")?;
    let other = file.primitive::<UInt32Type>(batch, "other")?;
    let n_both = file.primitive::<UInt64Type>(batch, "n_both")?;
    let [lift, jaccard, phi, pearson, cosine] = [
        file.primitive::<Float64Type>(batch, "lift")?,
        file.primitive::<Float64Type>(batch, "jaccard")?,
        file.primitive::<Float64Type>(batch, "phi")?,
        file.primitive::<Float64Type>(batch, "pearson")?,
        file.primitive::<Float64Type>(batch, "cosine")?,
    ];
    Ok((0..feature.len())
        .map(|i| FeaturePair {
            feature: feature[i],
            rank: rank[i],
            other: other[i],
            n_both: n_both[i],
            lift: lift[i],
            jaccard: jaccard[i],
            phi: phi[i],
            pearson: pearson[i],
            cosine: cosine[i],
        })
        .collect())
}

pub(super) fn join_batch(rows: &[JoinRow]) -> RecordBatch {
    let count = |of: fn(&JoinRow) -> u64| Arc::new(UInt64Array::from_iter_values(rows.iter().map(of)));
    let number = |of: fn(&JoinRow) -> f64| Arc::new(Float64Array::from_iter_values(rows.iter().map(of)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.layer).collect::<UInt32Array>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.label))),
        Arc::new(rows.iter().map(|row| row.rank).collect::<UInt32Array>()),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.feature))),
        count(|row| row.n_feature),
        count(|row| row.n_label),
        count(|row| row.n_both),
        number(|row| row.lift),
        number(|row| row.mutual_information),
        number(|row| row.control),
        number(|row| row.threshold),
    ];
    RecordBatch::try_new(schema::feature_join(), columns).expect("the columns are those of the schema")
}

pub(super) fn join_rows(file: &TableFile, batch: &RecordBatch) -> Result<Vec<JoinRow>> {
    let layer = file.optional::<UInt32Type>(batch, "layer")?;
    let label = file.strings(batch, "label")?;
    let rank = file.optional::<UInt32Type>(batch, "rank")?;
    let feature = file.primitive::<UInt32Type>(batch, "feature")?;
    let n_feature = file.primitive::<UInt64Type>(batch, "n_feature")?;
    let n_label = file.primitive::<UInt64Type>(batch, "n_label")?;
    let n_both = file.primitive::<UInt64Type>(batch, "n_both")?;
    let [lift, mutual_information, control, threshold] = [
        file.primitive::<Float64Type>(batch, "lift")?,
        file.primitive::<Float64Type>(batch, "mutual_information")?,
        file.primitive::<Float64Type>(batch, "control")?,
        file.primitive::<Float64Type>(batch, "threshold")?,
    ];
    Ok(label
        .into_iter()
        .enumerate()
        .map(|(i, label)| JoinRow {
            layer: layer[i],
            label: label.unwrap_or_default(),
            rank: rank[i],
            feature: feature[i],
            n_feature: n_feature[i],
            n_label: n_label[i],
            n_both: n_both[i],
            lift: lift[i],
            mutual_information: mutual_information[i],
            control: control[i],
            threshold: threshold[i],
        })
        .collect())
}

pub(super) fn acts_batch(token_idx: Vec<u64>, feature: Vec<u32>, act: Vec<f32>) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(token_idx)),
        Arc::new(UInt32Array::from(feature)),
        Arc::new(Float32Array::from(act)),
    ];
    RecordBatch::try_new(schema::feature_acts(), columns).expect("the columns are those of the schema")
}

/// A list of (number, value) for each row.
fn pairs(fields: Fields, rows: &[&[(u32, f32)]]) -> ListArray {
    let numbers = UInt32Array::from_iter_values(rows.iter().flat_map(|row| row.iter().map(|pair| pair.0)));
    let values = Float32Array::from_iter_values(rows.iter().flat_map(|row| row.iter().map(|pair| pair.1)));
    let item = schema::item(DataType::Struct(fields.clone()));
    let items = StructArray::new(fields, vec![Arc::new(numbers), Arc::new(values)], None);
    ListArray::new(item, OffsetBuffer::from_lengths(rows.iter().map(|row| row.len())), Arc::new(items), None)
}

fn read_pairs(file: &TableFile, batch: &RecordBatch, column: &str) -> Result<Vec<Vec<(u32, f32)>>> {
    let array = file.column(batch, column)?;
    let wrong = || file.wrong_text(column, "a list of pairs", array.data_type().to_string());
    let list = array.as_list_opt::<i32>().ok_or_else(wrong)?;
    let items = list.values().as_struct_opt().filter(|items| items.num_columns() == 2).ok_or_else(wrong)?;
    let numbers = items.column(0).as_primitive_opt::<UInt32Type>().ok_or_else(wrong)?;
    let values = items.column(1).as_primitive_opt::<Float32Type>().ok_or_else(wrong)?;
    let offsets = list.value_offsets();
    Ok((0..list.len())
        .map(|row| {
            let items = offsets[row] as usize..offsets[row + 1] as usize;
            items.map(|i| (numbers.value(i), values.value(i))).collect()
        })
        .collect())
}

fn histograms(file: &TableFile, batch: &RecordBatch) -> Result<Vec<Vec<u64>>> {
    let array = file.column(batch, "act_hist")?;
    let wrong = || file.wrong_text("act_hist", "a list of 64 counts", array.data_type().to_string());
    let list =
        array.as_fixed_size_list_opt().filter(|list| list.value_length() == ACT_BINS as i32).ok_or_else(wrong)?;
    let counts = list.values().as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
    Ok((0..list.len())
        .map(|row| {
            let start = list.value_offset_at(row);
            (start..start + ACT_BINS).map(|i| counts.value(i)).collect()
        })
        .collect())
}
