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
    // Host and guest each read the other's messages.
    round_trip::<v1::SetUpPodRequest>(data);
    round_trip::<v1::ConfigureNetworkRequest>(data);
    round_trip::<v1::MountVolumeRequest>(data);
    round_trip::<v1::CreateContainerRequest>(data);
    round_trip::<v1::UpdateContainerRequest>(data);
    round_trip::<v1::HelloResponse>(data);
    round_trip::<v1::ListResponse>(data);
    round_trip::<v1::StatsResponse>(data);
    round_trip::<v1::OomEvent>(data);
});

/// What can be read can be written, and is read again as the same.
fn round_trip<M: Message + Default + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = M::decode(data) {
        assert_eq!(M::decode(&message.encode_to_vec()[..]), Ok(message));
    }
}
