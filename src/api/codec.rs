//! Messages as protobuf, in buffers of a size for many small ones. tonic's own begin with 8 KB for each direction of a
//! call and gather up to 32 KB of a stream, in twice that, before any of it is handed on; with thousands of streams whose
//! callers are slow to read, this is what they hold.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// With what the buffer of a message begins; it grows with what is written into it.
const BUFFER_BYTES: usize = 1024;
/// With how much a stream's buffer is handed on at once, whatever else is there to be told.
const CHUNK_BYTES: usize = 8 * 1024;

/// See the head of the file.
#[derive(Debug, Clone)]
pub(crate) struct Protobuf<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Protobuf<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Protobuf<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, CHUNK_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, CHUNK_BYTES))
    }
}
