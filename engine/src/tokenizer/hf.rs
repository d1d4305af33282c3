//! How is a Hugging Face `tokenizer.json` read and used?

use std::path::Path;

use data::files::hex;
use fs_err as fs;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::vocab::Vocab;
use super::{Scheme, Tokenizer, check_roles};
use crate::error::{Error, Result};
use crate::weights::{read_bounded, read_json};

const TOKENIZER_FILE: &str = "tokenizer.json";

/// Where the ids of tokens with a role may be written down; the first file that has one counts.
const ROLE_FILES: &[&str] = &["generation_config.json", "config.json"];

pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join(TOKENIZER_FILE);
    if !path.is_file() {
        return Err(Error::NoTokenizer { path: dir.to_owned() });
    }
    let bytes = read_bounded(&path)?;
    let sha256 = hex(&Sha256::digest(&bytes));
    let foreign = |error: String| Error::Tokenizer {
        what: format!("expected the format of the `tokenizers` library, found something else ({error})"),
        path: path.clone(),
    };
    // The library itself panics at some of what it does not know.
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes));
    let mut tokenizer = read
        .map_err(|_panic| foreign("a part that it does not know".to_owned()))?
        .map_err(|error| foreign(error.to_string()))?;
    // What a file may ask for is not what an instrument wants: nothing is cut off, nothing is padded.
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| Error::Tokenizer { what: error.to_string(), path: path.clone() })?;

    let mut tokens: Vec<(u32, String)> = tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    tokens.sort_unstable();
    // Ids may have holes. A largest id far beyond the number of tokens is a damaged file, not a reason to allocate.
    let n = tokens.last().map_or(0, |(id, _)| *id as usize + 1).min(2 * tokens.len());
    let mut strings = vec![String::new(); n];
    for (id, text) in tokens {
        if let Some(place) = strings.get_mut(id as usize) {
            *place = text;
        }
    }
    let added = tokenizer.get_added_tokens_decoder();
    let special = (0..n as u32).map(|id| added.get(&id).is_some_and(|token| token.special)).collect();
    let vocab = Vocab::new(strings.iter().map(String::as_str), |_| true);
    let roles = Roles::read(dir)?;
    let named = |role: &str, usual: &str| {
        roles.text(&format!("{role}_token")).or(Some(usual.to_owned())).and_then(|token| tokenizer.token_to_id(&token))
    };
    let bos_id = named("bos", "<bos>").or_else(|| roles.ids("bos_token_id").first().copied());
    let pad_id = named("pad", "<pad>").or_else(|| roles.ids("pad_token_id").first().copied());
    let mut eos_ids = roles.ids("eos_token_id");
    if eos_ids.is_empty() {
        eos_ids.extend(named("eos", "<eos>"));
    }
    check_roles(bos_id.iter().chain(&pad_id).chain(&eos_ids), vocab.len(), dir)?;
    let templates = templates(dir, roles.tokenizer_config.as_ref())?;
    Ok(Tokenizer {
        vocab,
        special,
        bos_id,
        eos_ids,
        pad_id,
        sha256,
        templates,
        scheme: Scheme::Hf(Box::new(tokenizer)),
    })
}

/// The chat templates of a folder: `default`, and others that have a name. Files of their own come before what
/// `tokenizer_config.json` says.
fn templates(dir: &Path, tokenizer_config: Option<&Value>) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        templates.push(("default".to_owned(), read_text(&file)?));
    }
    let folder = dir.join("additional_chat_templates");
    if folder.is_dir() {
        let entries = fs::read_dir(&folder).map_err(|source| Error::io(&folder, source))?;
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "jinja")) {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            templates.push((name, read_text(file)?));
        }
    }
    // Checkpoints that see images may keep it in a file of the processor.
    let processor = dir.join("chat_template.json");
    let processor = if processor.is_file() { Some(read_json(&processor)?) } else { None };
    for config in [tokenizer_config, processor.as_ref()].into_iter().flatten() {
        match config.get("chat_template") {
            Some(Value::String(template)) => templates.push(("default".to_owned(), template.clone())),
            Some(Value::Array(named)) => templates.extend(named.iter().filter_map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                Some((text("name")?, text("template")?))
            })),
            _ => {}
        }
    }
    Ok(templates)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bounded(path)?).map_err(|error| Error::Malformed {
        format: "text",
        what: format!("expected UTF-8, found other bytes ({error})"),
        path: path.to_owned(),
    })
}

/// Calls `add` with the id, start and end of each token.
pub(super) fn encode(
    tokenizer: &tokenizers::Tokenizer,
    vocab: &Vocab,
    text: &str,
    mut add: impl FnMut(u32, usize, usize),
) {
    let encoding = tokenizer.encode(text, false).expect("a byte-level fallback leaves nothing that cannot be encoded");
    // A byte token may come with the span of its whole character; its own byte is the one after the last.
    let mut next_byte = 0;
    for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
        if vocab.byte(id).is_some() && end - start <= char::MAX_LEN_UTF8 {
            let at = next_byte.clamp(start, end.saturating_sub(1).max(start));
            next_byte = at + 1;
            add(id, at, at + 1);
        } else {
            next_byte = end;
            add(id, start, end);
        }
    }
}

/// What the files beside `tokenizer.json` say about tokens with a role.
struct Roles {
    tokenizer_config: Option<Value>,
    others: Vec<Value>,
}

impl Roles {
    fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Option<Value>> {
            let path = dir.join(name);
            if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
        };
        let mut others = Vec::new();
        for name in ROLE_FILES {
            others.extend(read(name)?);
        }
        Ok(Self { tokenizer_config: read("tokenizer_config.json")?, others })
    }

    /// A token by its string, which is given plainly or as an object with its `content`.
    fn text(&self, key: &str) -> Option<String> {
        let value = self.tokenizer_config.as_ref()?.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
    }

    /// Ids, which are given as one number or as a list. Checkpoints that see images may have them in `text_config` only.
    fn ids(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = |value: &Value| match value {
            Value::Array(list) => list.iter().filter_map(id).collect::<Vec<u32>>(),
            one => id(one).into_iter().collect(),
        };
        let places = self.others.iter().flat_map(|json| [Some(json), json.get("text_config")]).flatten();
        places.filter_map(|json| json.get(key)).map(ids).find(|ids| !ids.is_empty()).unwrap_or_default()
    }
}
