//! Are arrays read as NumPy wrote them, and is what is damaged or pickled refused in words?

use std::io::Write;

use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn npz(dir: &Path, members: &[(&str, Vec<u8>)], method: CompressionMethod) -> PathBuf {
    let path = dir.join("a.npz");
    let mut archive = ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in members {
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

#[test]
fn every_order_and_kind() {
    let folder = tempfile::tempdir().unwrap();
    let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.5];
    let doubles: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let halves: Vec<u8> = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let members = [
        ("c.npy", npy("'<f4'", "False", "(2, 3)", &bytes(&values))),
        ("f.npy", npy("'<f4'", "True", "(2, 3)", &bytes(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.5]))),
        ("d.npy", npy("'<f8'", "False", "(2, 3)", &doubles)),
        ("h.npy", npy("'<f2'", "False", "(2, 3)", &halves)),
    ];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let npz = Npz::open(&npz(folder.path(), &members, method)).unwrap();
        for name in ["c", "f", "d", "h"] {
            assert_eq!(npz.f32(name, &[2, 3]).unwrap(), values, "{name}");
            assert_eq!(npz.matrix(name, [2, 3]).unwrap().row(1), &values[3..], "{name}");
        }
        let wrong = npz.f32("c", &[3, 2]).unwrap_err().to_string();
        assert!(wrong.starts_with("expected `c` of shape [3, 2], found [2, 3]"), "{wrong}");
        assert!(npz.f32("x", &[1]).unwrap_err().to_string().starts_with("expected a tensor `x`, found [\"c\", "));
    }
}

#[test]
fn headers_that_are_refused() {
    let refused = |descr: &str, order: &str, shape: &str| parse_header(&npy(descr, order, shape, &[])).unwrap_err();
    assert!(refused("'|O'", "False", "(2,)").contains("objects, which are pickled"));
    assert!(refused("'>f4'", "False", "(2,)").contains("found `>f4`"));
    assert!(refused("[('a', '<f4')]", "False", "(2,)").contains("found `a list`"));
    assert!(refused("'<f4'", "maybe", "(2,)").contains("`fortran_order`"));
    assert!(refused("'<f4'", "False", "(2, -3)").contains("found `-3`"));
    assert!(refused("'<f4'", "False", "(4611686018427387904, 4)").contains("fits memory"));
    assert!(refused("'<f4'", "False", "2").contains("in brackets"));
    for damaged in
        [&b""[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00\xff\xff\xff\xff", b"PK\x03\x04"]
    {
        assert!(parse_header(damaged).unwrap_err().starts_with("expected "));
    }
    let scalar = parse_header(&npy("'<f4'", "False", "()", &[])).unwrap();
    assert_eq!((scalar.shape.len(), scalar.n_bytes()), (0, Some(4)));
}

#[test]
fn archives_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| Npz::open(path).unwrap_err().to_string();
    // As many numbers as no file of this size holds.
    let lying = npy("'<f4'", "False", "(1000000000, 1000)", &bytes(&[1.0]));
    let path = npz(folder.path(), &[("a.npy", lying)], CompressionMethod::Deflated);
    assert!(
        message(&path).contains("expected as many bytes as the shape [1000000000, 1000] needs"),
        "{}",
        message(&path)
    );
    let objects = npy("'|O'", "False", "(1,)", b"\x80\x04");
    let path = npz(folder.path(), &[("a.npy", objects)], CompressionMethod::Stored);
    assert!(message(&path).contains("objects, which are pickled and never opened here, in its member `a`"));
    let whole =
        npz(folder.path(), &[("a.npy", npy("'<f4'", "False", "(2,)", &bytes(&[1.0, 2.0])))], CompressionMethod::Stored);
    let whole = fs::read(whole).unwrap();
    for end in [0, 10, whole.len() / 2, whole.len() - 5] {
        fs::write(folder.path().join("cut.npz"), &whole[..end]).unwrap();
        assert!(message(&folder.path().join("cut.npz")).starts_with("not an `.npz` of numbers: "));
    }
}

/// Numbers of which deflate cannot tell many at once, and more of them than are read at a time.
fn many(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4096.0).collect()
}

#[test]
fn what_cannot_be_mapped_is_read_as_what_can() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, cols) = (1031, 2 * BUFFER / 1031 + 3);
    let values = many(rows * cols);
    let matrix = Matrix::from_slice(rows, cols, &values);
    let shape = format!("({rows}, {cols})");
    let plain = npy("'<f4'", "False", &shape, &bytes(&values));
    let turned = npy("'<f4'", "True", &shape, &bytes(matrix.transposed().as_slice()));
    // Names of all lengths: of four in a row, the numbers of three are not aligned.
    let members =
        [("a.npy", &plain), ("bb.npy", &plain), ("ccc.npy", &plain), ("dddd.npy", &plain), ("f.npy", &turned)];
    let members: Vec<(&str, Vec<u8>)> = members.map(|(name, bytes)| (name, bytes.clone())).into();
    let mut mapped = Vec::new();
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let npz = Npz::open(&npz(folder.path(), &members, method)).unwrap();
        for name in ["a", "bb", "ccc", "dddd", "f"] {
            let found = npz.matrix(name, [rows, cols]).unwrap();
            assert!(found == matrix, "{name} {method}");
            mapped.push(found.is_mapped());
        }
    }
    let n_mapped = mapped[..5].iter().filter(|mapped| **mapped).count();
    assert!(n_mapped < 4 && mapped[5..].iter().all(|mapped| !mapped), "{mapped:?}");
}

/// Halves the length of the compressed bytes that both headers of a member give.
fn cut(archive: &mut [u8]) {
    let central = archive.windows(4).rposition(|four| four == b"PK\x01\x02").unwrap();
    for at in [18, central + 20] {
        let length = u32::from_le_bytes(archive[at..at + 4].try_into().unwrap());
        archive[at..at + 4].copy_from_slice(&(length / 2).to_le_bytes());
    }
}

#[test]
fn members_that_are_cut_short_or_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let values = many(100_000);
    let member = [("w.npy", npy("'<f4'", "False", "(100, 1000)", &bytes(&values)))];
    let read = |bytes: &[u8]| {
        let path = folder.path().join("damaged.npz");
        fs::write(&path, bytes).unwrap();
        Npz::open(&path).and_then(|npz| npz.f32("w", &[100, 1000]).map(|_| ()))
    };
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let whole = fs::read(npz(folder.path(), &member, method)).unwrap();
        read(&whole).unwrap();
        let mut short = whole.clone();
        cut(&mut short);
        let message = read(&short).unwrap_err().to_string();
        assert!(message.starts_with("not an `.npz` of numbers: expected as many bytes as"), "{method}: {message}");
        assert!(message.contains("in its member `w`") && message.contains("hint: "), "{message}");
        let mut damaged = whole.clone();
        let middle = whole.len() / 2;
        damaged[middle] ^= 1;
        let message = read(&damaged).unwrap_err().to_string();
        assert!(message.contains("in its member `w`"), "{method}: {message}");
    }
}
