//! Fills the store of a stopped instance with copies of the keys that it has: what memory and a start cost is then known in seconds, without
//! a request for each. Records are whole and a copy is listed like any key; its material does not open, for blobs are bound to their names.
//! Used by `bench/many_keys.py`.
//!
//! `many_keys DATA_DIR SILICON_ROOT COUNT`: until there are COUNT keys. Of the kms, or of the managed HSM.

#[path = "../src/ambient.rs"]
mod ambient;

use std::{error::Error, path::Path, sync::Arc};

use holdfast_core::{Ambient, Record, RecordKey, Store, StoreError, Write};
use holdfast_enclave::{InstanceSecrets, SoftwareSilicon};
use holdfast_store::{EmbeddedEngine, SealedStore};
use serde_json::Value;

use crate::ambient::OsAmbient;

type Fault = Box<dyn Error>;

/// Kinds of records, of both roles (`docs/formats`).
const KEY: u8 = 1;
const MATERIAL: u8 = 2;
/// Writes of one commit.
const BATCH: usize = 4096;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>, Fault> {
    let at = |place| hex.get(place..place + 2).ok_or("an id that is not in hex");
    (0..hex.len()).step_by(2).map(|place| Ok(u8::from_str_radix(at(place)?, 16)?)).collect()
}

/// Materials of a copied key: old id, new id.
type Materials = Vec<(String, [u8; 16])>;

/// A copy of a key under another name, and its materials.
fn copy(template: &Record, ambient: &dyn Ambient) -> Result<(Write, Materials), Fault> {
    let mut key: Value = serde_json::from_slice(&template.value)?;
    let fresh = hex(&ambient.random::<16>());
    let hosted = key.get("region").and_then(Value::as_str).map(str::to_owned);
    let (id, versions) = match hosted {
        Some(region) => {
            let id = [&fresh[..8], &fresh[8..12], &fresh[12..16], &fresh[16..20], &fresh[20..]].join("-");
            key["id"] = id.clone().into();
            (format!("{region}/{id}"), "materials")
        }
        None => {
            let name = format!("copy-{}", &fresh[..12]);
            key["name"] = name.clone().into();
            (name, "versions")
        }
    };
    let mut materials = Vec::new();
    for version in key[versions].as_array_mut().into_iter().flatten() {
        let new = ambient.random();
        materials.push((version["id"].as_str().unwrap_or_default().to_owned(), new));
        version["id"] = hex(&new).into();
        version["blob"] = 1.into();
    }
    let value = Some(serde_json::to_vec(&key)?);
    Ok((Write { key: RecordKey::new(KEY, id), expected_version: 0, value }, materials))
}

async fn fill(data_dir: &Path, silicon_root: &Path, count: usize) -> Result<(), Fault> {
    let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
    let silicon = SoftwareSilicon::open(silicon_root, Arc::clone(&ambient))?;
    let secrets = InstanceSecrets::open(&data_dir.join("instance.sealed"), &silicon)?.ok_or("no instance is there")?;
    let engine = EmbeddedEngine::open(&data_dir.join("records.redb"))?;
    let store = SealedStore::open(engine, secrets.instance, &secrets.database_key, Arc::clone(&ambient), false).await?;
    let mut templates = Vec::new();
    store.scan(KEY, &mut |record| templates.push(record)).await?;
    if templates.is_empty() {
        return Err("there is no key to copy".into());
    }
    let (mut writes, mut made) = (Vec::new(), templates.len());
    for template in templates.iter().cycle() {
        if made >= count || writes.len() >= BATCH {
            store.keep(std::mem::take(&mut writes)).await?;
        }
        if made >= count {
            return Ok(());
        }
        let (write, materials) = copy(template, ambient.as_ref())?;
        writes.push(write);
        for (old, new) in materials {
            let blob = store.read(&RecordKey::new(MATERIAL, bytes(&old)?)).await?;
            let blob = blob.ok_or(StoreError::Damaged)?;
            writes.push(Write { key: RecordKey::new(MATERIAL, new), expected_version: 0, value: Some(blob.value) });
        }
        made += 1;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, silicon_root, count] = words.as_slice() else {
        return Err("many_keys DATA_DIR SILICON_ROOT COUNT".into());
    };
    fill(Path::new(data_dir), Path::new(silicon_root), count.parse()?).await
}
