//! TEMP
pub const FORMAT_VERSION: u32 = 1;
pub struct Expected { pub digest: Option<cloister_layer::Digest>, pub size: Option<u64>, pub diff_id: cloister_layer::Digest }
pub fn convert(_b: impl std::io::Read + Send, _e: &Expected, _o: &std::fs::File, _l: &cloister_layer::Limits) -> Result<(), cloister_layer::Error> { Err(cloister_layer::Error::TooLarge{what:"x"}) }
