//! The stream handshake and the messages a peer can send, from arbitrary bytes.
#![no_main]

use cloister_protocol::{stream, v1, version};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Some(hello) = data.first_chunk::<{ stream::HELLO_BYTES }>()
        && let Ok(id) = stream::decode(hello)
    {
        assert_eq!(&stream::encode(id), hello);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(parsed) = text.parse::<version::Version>()
    {
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
    // Host and guest each read the other's messages: none may panic, and what was read can be written.
    if let Ok(message) = v1::CreateContainerRequest::decode(data) {
        let _ = message.encode_to_vec();
    }
    if let Ok(message) = v1::ListResponse::decode(data) {
        let _ = message.encode_to_vec();
    }
});
