//! A safetensors file.

use polykv_models::load::{Stored, safetensors};

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    let path = folder.write("model.safetensors", input);
    match safetensors::read(&path) {
        Ok(tensors) => assert!(bytes_of(&tensors) <= input.len()),
        Err(error) => super::refused(&error),
    }
}

/// Bytes of all tensors together, each of which must be there as it was announced.
pub fn bytes_of(tensors: &[Stored]) -> usize {
    let bytes = |tensor: &Stored| {
        let data = tensor.data().expect("data inside of the file");
        assert_eq!(*data.shape(), tensor.shape);
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(data.bytes().len(), elements * tensor.dtype.size());
        data.bytes().len()
    };
    tensors.iter().map(bytes).sum()
}
