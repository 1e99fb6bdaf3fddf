//! Makes an image, looks at what a copy would meet, copies it with a check at the end, and prints the receipt.

use blkcopy::copy::run::Verify;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join("blkcopy-example");
    std::fs::create_dir_all(&folder)?;
    let (golden, clone) = (folder.join("golden.img"), folder.join("clone.img"));
    std::fs::write(&golden, vec![7; 64 << 20])?;

    let mut copy = blkcopy::copy(&golden, &clone).verify(Verify::Digest).look()?;
    for finding in &copy.ends().findings {
        println!("{}: {finding}", finding.code());
    }
    let receipt = copy.run()?;
    println!("{}", serde_json::to_string_pretty(&receipt)?);
    Ok(std::fs::remove_dir_all(&folder)?)
}
