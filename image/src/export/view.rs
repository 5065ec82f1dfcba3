//! The merged file system of an image, in one file.

use std::fs::File;
use std::io::Write;

use cloister_view::merged::{Limits, Merged};
use cloister_view::reader;

use crate::error::{Error, IoContext, Result};
use crate::store::Image;

/// Free bytes in an exported ext4: enough to boot and write a little; whoever needs more grows it.
const EXT4_SLACK: u64 = 64 << 20;

/// Stacks the image's layers.
pub(super) fn merge(image: &Image) -> Result<Merged> {
    let layers = image
        .layer_files()
        .iter()
        .map(|layer| {
            let file = layer.file.try_clone().at("open", &layer.path)?;
            reader::Image::open(file, format!("layer {}", layer.diff_id))
                .map_err(|error| failed(image, &error))
        })
        .collect::<Result<Vec<_>>>()?;
    Merged::new(layers).map_err(|error| failed(image, &error))
}

/// Writes the merged tree as ext4.
pub(super) fn ext4(image: &Image, merged: &Merged, file: &File) -> Result<()> {
    let options = cloister_view::ext4::Options {
        uuid: uuid(image),
        label: Vec::new(),
        size: cloister_view::ext4::Size::Slack(EXT4_SLACK),
        limits: Limits::default(),
    };
    cloister_view::ext4::write(file, merged, &options).map(drop).map_err(|error| failed(image, &error))
}

/// Writes the merged tree as EROFS.
pub(super) fn erofs(image: &Image, merged: &Merged, file: &File) -> Result<()> {
    let options = cloister_view::erofs::Options::new(uuid(image));
    cloister_view::erofs::write(file, merged, &options).map(drop).map_err(|error| failed(image, &error))
}

/// Writes the merged tree as a tar.
pub(super) fn tar(image: &Image, merged: &Merged, out: &mut dyn Write) -> Result<()> {
    cloister_view::tar::write(out, merged, Limits::default()).map(drop).map_err(|error| failed(image, &error))
}

/// The same image always gets the same file system.
fn uuid(image: &Image) -> [u8; 16] {
    cloister_layer::erofs::Identity::uuid_for(&image.record.manifest)
}

fn failed(image: &Image, why: &dyn std::fmt::Display) -> Error {
    Error::View { subject: format!("file system of {}", image.record.name), why: why.to_string() }
}
