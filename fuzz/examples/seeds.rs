//! Writes the first inputs of every target to `corpus/TARGET/`.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    for (target, inputs) in blkcopy_fuzz::seeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder)?;
        for (n, input) in inputs.iter().enumerate() {
            fs::write(folder.join(format!("seed-{n:02}")), input)?;
        }
        println!("{target}: {} inputs", inputs.len());
    }
    Ok(())
}
