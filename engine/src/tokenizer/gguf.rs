//! Which vocabulary does a GGUF file carry, and by which rules does it cut?
//!
//! Gemma 3 and 3n come as model `llama`: pieces with scores. Gemma 4 comes as model `gemma4`: the merges of
//! `tokenizer.json`. Its converter keeps the type of few tokens, so those that `tokenizer.json` takes whole are known by
//! where they stand and how they look.

use data::files::hex;
use sha2::{Digest, Sha256};

use super::spm::{self, Order, Spm};
use super::{SPACE, Scheme, Tokenizer, check_roles};
use crate::error::{Error, Result};
use crate::weights::gguf::Metadata;

/// Below this key stand chat templates with a name; the plain one is the key itself.
const TEMPLATE: &str = "tokenizer.chat_template";

pub(super) fn read(metadata: &Metadata) -> Result<Tokenizer> {
    let bad = |what: String| Error::Tokenizer { what, path: metadata.path().to_owned() };
    let Some(model) = metadata.text("tokenizer.ggml.model")? else {
        return Err(Error::NoTokenizer { path: metadata.path().to_owned() });
    };
    if model != "llama" && model != "gemma4" {
        return Err(bad(format!("expected the tokenizer model `llama` or `gemma4`, found `{model}`")));
    }
    if metadata.bool("tokenizer.ggml.add_space_prefix")? == Some(true) {
        return Err(bad("expected no space prefix, found `add_space_prefix`".to_owned()));
    }
    let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let types = metadata.ints("tokenizer.ggml.token_type")?.unwrap_or_default();
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    let merges = metadata.texts("tokenizer.ggml.merges")?.filter(|merges| !merges.is_empty());
    if tokens.is_empty() || types.len() != tokens.len() {
        let (n, n_types) = (tokens.len(), types.len());
        return Err(bad(format!("expected tokens with a type each, found {n} tokens and {n_types} types")));
    }
    let eos_ids = metadata.eos_token_ids()?;
    let (bos_id, pad_id) = (metadata.token_id("bos")?, metadata.token_id("padding")?);
    check_roles(bos_id.iter().chain(&pad_id).chain(&eos_ids), tokens.len(), metadata.path())?;

    let mut hash = Sha256::new();
    // With its length, so that no two vocabularies are the same bytes.
    let add = |hash: &mut Sha256, text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    for (token, kind) in tokens.iter().zip(types) {
        add(&mut hash, token);
        hash.update(kind.to_le_bytes());
    }
    // GGUF files hold runs of spaces as spaces; the vocabulary of the reference has them as `▁`.
    let strings: Vec<String> = tokens.iter().map(|token| token.replace(' ', "▁")).collect();
    // Some writers say `llama` and give merges all the same; merges say more than scores do.
    let (vocab, scheme) = if let Some(merges) = merges {
        for merge in merges {
            add(&mut hash, merge);
        }
        let first_byte = types.iter().position(|&kind| kind == spm::BYTE).unwrap_or(0);
        let whole = |id: usize| id < first_byte || is_whole(&strings[id]) || spm::is_whole(types[id]);
        Spm::new(&strings, types, whole, |vocab| Order::merges(merges, vocab))
    } else {
        if scores.len() != tokens.len() {
            let (n, n_scores) = (tokens.len(), scores.len());
            return Err(bad(format!("expected tokens with a score each, found {n} tokens and {n_scores} scores")));
        }
        for score in scores {
            hash.update(score.to_le_bytes());
        }
        Spm::new(&strings, types, |id| spm::is_whole(types[id]), |_| Order::scores(scores, types))
    };
    let special = strings.iter().zip(types).map(|(token, &kind)| spm::is_control(kind) || is_mark(token, kind));
    Ok(Tokenizer {
        special: special.collect(),
        vocab,
        bos_id,
        eos_ids,
        pad_id,
        sha256: hex(&hash.finalize()),
        templates: templates(metadata)?,
        scheme: Scheme::Spm(scheme),
    })
}

/// What `tokenizer.json` takes whole and the converter of Gemma 4 calls normal: runs of newlines or tabs, unused tokens.
fn is_whole(token: &str) -> bool {
    let run = |sign: char| !token.is_empty() && token.chars().all(|c| c == sign);
    run('\n')
        || run('\t')
        || run(SPACE) && token.len() > SPACE.len_utf8()
        || token.starts_with("<unused") && token.ends_with('>')
}

/// A control token that the converter of Gemma 4 calls user-defined, so that it is seen in what a model says.
fn is_mark(token: &str, kind: i64) -> bool {
    kind == spm::USER_DEFINED && (token.starts_with("<|") && token.ends_with('>') || token.ends_with("|>"))
}

fn templates(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    for key in metadata.keys() {
        let name = match key.strip_prefix(TEMPLATE) {
            Some("") => "default",
            Some(name) if name.starts_with('.') => &name[1..],
            _ => continue,
        };
        if let Some(template) = metadata.text(key)? {
            templates.push((name.to_owned(), template.to_owned()));
        }
    }
    Ok(templates)
}
