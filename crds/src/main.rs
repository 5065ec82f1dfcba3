//! Prints the custom resource definitions as YAML.

use std::process::ExitCode;

fn main() -> ExitCode {
    match cloister_crds::yaml() {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cloister-crds: {error}");
            ExitCode::FAILURE
        }
    }
}
