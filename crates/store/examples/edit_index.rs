//! Changes rows of an index file as somebody does who may write to it and has no key. For tests alone.
//!
//! `edit_index FILE TABLE list`; `... get NAME`; `... put NAME VALUE`; `... remove NAME`; names and values in hex. One edit a line may also come
//! from standard input, all in one transaction: `edit_index FILE TABLE apply`.

#![allow(clippy::print_stdout, reason = "a program for tests")]

use std::{error::Error, io};

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

type Fault = Box<dyn Error>;

fn bytes(hex: &str) -> Result<Vec<u8>, Fault> {
    let digits: Vec<u8> = hex.bytes().collect();
    let pairs = digits.chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    pairs.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn apply(table: &mut Table<'_, &[u8], &[u8]>, words: &[String]) -> Result<(), Fault> {
    match words {
        [what, name] if what == "remove" => drop(table.remove(bytes(name)?.as_slice())?),
        [what, name, value] if what == "put" => drop(table.insert(bytes(name)?.as_slice(), bytes(value)?.as_slice())?),
        [what, name] if what == "put" => drop(table.insert(bytes(name)?.as_slice(), [].as_slice())?),
        other => return Err(format!("not understood: {other:?}").into()),
    }
    Ok(())
}

fn main() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, table, rest @ ..] = words.as_slice() else { return Err("edit_index FILE TABLE ...".into()) };
    let database = Database::open(file)?;
    let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(table);
    match rest {
        [what] if what == "list" => {
            for entry in database.begin_read()?.open_table(definition)?.iter()? {
                let (name, value) = entry?;
                println!("{} {}", hex(name.value()), hex(value.value()));
            }
        }
        [what, name] if what == "get" => {
            let table = database.begin_read()?.open_table(definition)?;
            println!("{}", table.get(bytes(name)?.as_slice())?.map(|value| hex(value.value())).unwrap_or_default());
        }
        edit => {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(definition)?;
                if edit == ["apply"] {
                    for line in io::stdin().lines() {
                        let words: Vec<String> = line?.split(' ').map(str::to_owned).collect();
                        apply(&mut table, &words)?;
                    }
                } else {
                    apply(&mut table, edit)?;
                }
            }
            transaction.commit()?;
        }
    }
    Ok(())
}
