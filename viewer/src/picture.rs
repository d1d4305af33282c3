//! How does a picture carry the link to what it shows?
//!
//! As text within the PNG, under the keyword `polariscope-link`, which other programs keep or ignore. Dropped on a
//! window, such a picture brings its view back.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use fs_err as fs;
use image::ImageEncoder as _;

use crate::error::{Error, Result};

const KEYWORD: &[u8] = b"polariscope-link\0";
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Signature and header, which come first.
const HEAD: usize = 8 + 25;

/// A PNG of some pixels, with a link.
pub(crate) fn encode(
    (width, height): (u32, u32),
    rgba: &[u8],
    link: Option<&str>,
) -> std::result::Result<Vec<u8>, image::ImageError> {
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(Cursor::new(&mut png));
    encoder.write_image(rgba, width, height, image::ExtendedColorType::Rgba8)?;
    Ok(match link {
        Some(link) => with_link(&png, link),
        None => png,
    })
}

/// Puts a link behind the header.
fn with_link(png: &[u8], link: &str) -> Vec<u8> {
    let (head, rest) = png.split_at(HEAD.min(png.len()));
    let mut chunk = b"tEXt".to_vec();
    chunk.extend_from_slice(KEYWORD);
    // Links are percent-encoded, so that they are Latin-1, which is what the format has.
    chunk.extend_from_slice(link.as_bytes());
    let mut out = head.to_vec();
    out.extend_from_slice(&(chunk.len() as u32 - 4).to_be_bytes());
    out.extend_from_slice(&chunk);
    out.extend_from_slice(&crc32(&chunk).to_be_bytes());
    out.extend_from_slice(rest);
    out
}

/// The link in a PNG, if it has one.
pub(crate) fn link_of(png: &[u8]) -> Option<String> {
    let mut rest = png.strip_prefix(SIGNATURE)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let data = after.get(..u32::from_be_bytes(*length) as usize)?;
        if kind == b"tEXt"
            && let Some(link) = data.strip_prefix(KEYWORD)
        {
            return String::from_utf8(link.to_vec()).ok();
        }
        rest = after.get(data.len() + 4..)?;
    }
}

/// Writes a picture under a name that is not taken, and tells where.
pub(crate) fn save(folder: &Path, name: &str, png: &[u8]) -> Result<PathBuf> {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    for number in 1..10_000 {
        let path = folder.join(format!("{plain}-{number}.png"));
        match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                use std::io::Write as _;
                file.write_all(png).map_err(|source| Error::Write { path: path.clone(), source })?;
                return Ok(path);
            }
            Err(taken) if taken.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Write { path, source }),
        }
    }
    let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
    Err(Error::Write { path: folder.to_owned(), source })
}

/// As PNG and zip have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_keeps_its_link_and_its_pixels() {
        let pixels = [255, 0, 0, 255, 0, 0, 255, 255];
        let link = "polariscope://demo@ab?v=1&view=feature&filter=a%20b";
        let png = encode((2, 1), &pixels, Some(link)).unwrap();
        assert_eq!(link_of(&png).as_deref(), Some(link));
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgba8().into_raw(), pixels);
        assert_eq!(link_of(&encode((2, 1), &pixels, None).unwrap()), None);
    }

    #[test]
    fn the_sum_is_that_of_the_format() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // The end of every PNG.
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
    }

    #[test]
    fn what_is_no_picture_has_no_link() {
        let png = encode((1, 1), &[0, 0, 0, 255], Some("polariscope://a")).unwrap();
        for end in 0..png.len() {
            let _ = link_of(&png[..end]);
        }
        assert_eq!(link_of(b""), None);
        assert_eq!(link_of(&[SIGNATURE, &[255; 40]].concat()), None);
    }

    #[test]
    fn a_name_that_is_taken_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = save(dir.path(), "demo routing", b"one").unwrap();
        let second = save(dir.path(), "demo routing", b"two").unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(first).unwrap(), b"one");
        assert!(save(&dir.path().join("missing"), "x", b"").is_err());
    }
}
