//! One compressed tar layer in, one EROFS file out: verified, streaming, bounded.
