//! How do captured tensors come from a device to main memory while the device goes on computing?
//!
//! The network thread starts a copy and goes on; the thread that writes shards waits for it. Copies run on a stream of
//! their own into page-locked buffers, which are used again. On a CPU there is nothing to bring, and nothing is done.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tch::Tensor;

use crate::device::{CopyStream, Copying, Cudart, Device, PageLocked};
use crate::error::{Error, Result};

/// Buffers grow in steps of this many bytes, so that batches of nearly one size find one that fits.
const STEP: usize = 1 << 20;

/// Brings tensors to main memory.
#[derive(Debug)]
pub(super) struct Downloads {
    /// `None` on a CPU.
    lane: Option<Lane>,
}

#[derive(Debug)]
struct Lane {
    cudart: Cudart,
    stream: Arc<CopyStream>,
    /// Buffers that are free again.
    free: Receiver<PageLocked>,
    back: Sender<PageLocked>,
}

/// A tensor that is here, or on its way.
#[derive(Debug)]
pub(super) enum Download {
    Here(Tensor),
    Coming(Coming),
}

#[derive(Debug)]
pub(super) struct Coming {
    stream: Arc<CopyStream>,
    /// `None` once it is over.
    copying: Option<Copying>,
    /// What is copied: its memory must not be used for anything else before that.
    source: Tensor,
    /// `None` once it was given back.
    buffer: Option<PageLocked>,
    back: Sender<PageLocked>,
}

impl Downloads {
    pub(super) fn new(device: Device) -> Result<Self> {
        let lane = match device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(Lane::new(Cudart::load()?, index)?),
        };
        Ok(Self { lane })
    }

    /// Starts to bring a tensor, as it is when everything that was asked of the device so far is computed.
    pub(super) fn start(&self, tensor: Tensor) -> Result<Download> {
        match &self.lane {
            Some(lane) => lane.start(&tensor).map(Download::Coming),
            None => Ok(Download::Here(tensor)),
        }
    }
}

impl Lane {
    fn new(cudart: Cudart, index: usize) -> Result<Self> {
        let (back, free) = unbounded();
        Ok(Self { cudart, stream: Arc::new(CopyStream::new(cudart, index)?), free, back })
    }

    fn start(&self, tensor: &Tensor) -> Result<Coming> {
        let source = tensor.contiguous();
        let bytes = source.numel() * source.kind().elt_size_in_bytes();
        let buffer = self.buffer(bytes)?;
        #[expect(unsafe_code, reason = "the stream copies between addresses")]
        // SAFETY: `source` is contiguous and has `bytes` bytes, `buffer` at least as many. Both lie in what is returned,
        // which gives them away only after it has waited, also when it is dropped.
        let copying = unsafe { self.stream.start(source.data_ptr(), buffer.begin(), bytes) }?;
        Ok(Coming {
            stream: self.stream.clone(),
            copying: Some(copying),
            source,
            buffer: Some(buffer),
            back: self.back.clone(),
        })
    }

    /// A free buffer that is large enough, or a new one. Smaller ones are dropped on the way.
    fn buffer(&self, bytes: usize) -> Result<PageLocked> {
        if let Some(buffer) = self.free.try_iter().find(|buffer| buffer.bytes() >= bytes) {
            return Ok(buffer);
        }
        PageLocked::new(self.cudart, bytes.next_multiple_of(STEP).max(STEP))
    }
}

impl Download {
    /// Waits for the tensor and lets `with` use it.
    pub(super) fn land<T>(self, with: impl FnOnce(&Tensor) -> T) -> Result<T> {
        match self {
            Self::Here(tensor) => Ok(with(&tensor)),
            Self::Coming(mut coming) => {
                coming.wait()?;
                let buffer = coming.buffer.take().ok_or(Error::Cuda { what: "find a copy", code: 0 })?;
                let (size, kind) = (coming.source.size(), coming.source.kind());
                let result = buffer.with_tensor(&size, kind, |landed| with(landed));
                // Nobody listening means that the recording is over.
                let _ = coming.back.send(buffer);
                Ok(result)
            }
        }
    }
}

impl Coming {
    fn wait(&mut self) -> Result<()> {
        self.copying.take().map_or(Ok(()), |copying| self.stream.wait(copying))
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // After an error elsewhere; the memory must still not be let go before the copy is over.
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tch::Kind;

    use super::*;
    use crate::device::fake;

    /// The stand-in keeps its copies in one place.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn lane() -> Downloads {
        lane_of(fake::cudart())
    }

    fn lane_of(cudart: Cudart) -> Downloads {
        Downloads { lane: Some(Lane::new(cudart, 0).unwrap()) }
    }

    fn values(rows: i64, kind: Kind) -> Tensor {
        Tensor::arange(rows * 3, (Kind::Float, tch::Device::Cpu)).to_kind(kind).view([rows, 3])
    }

    fn free(downloads: &Downloads) -> usize {
        downloads.lane.as_ref().unwrap().free.len()
    }

    #[test]
    fn on_a_cpu_a_tensor_is_handed_over() {
        let downloads = Downloads::new(Device::Cpu).unwrap();
        let tensor = values(4, Kind::Float);
        let download = downloads.start(tensor.shallow_clone()).unwrap();
        assert!(matches!(download, Download::Here(_)));
        assert!(download.land(|landed| landed.data_ptr() == tensor.data_ptr()).unwrap());
    }

    #[test]
    fn copies_are_made_when_they_are_waited_for() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let downloads = lane();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
            let tensors = [values(5, kind), values(2, kind).transpose(0, 1), values(0, kind)];
            let coming: Vec<Download> =
                tensors.iter().map(|tensor| downloads.start(tensor.shallow_clone()).unwrap()).collect();
            assert_eq!(fake::under_way(), 3);
            for (download, tensor) in coming.into_iter().zip(&tensors) {
                assert!(download.land(|landed| landed == tensor && landed.kind() == kind).unwrap());
            }
            assert_eq!(fake::under_way(), 0);
        }
        assert_eq!(fake::events(), 0);
    }

    #[test]
    fn buffers_are_used_again_and_grow() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let downloads = lane();
        let start = |rows| downloads.start(values(rows, Kind::Float)).unwrap();
        let land = |download: Download| download.land(|landed| landed.data_ptr() as usize).unwrap();
        let (first, second) = (start(10), start(10));
        assert_eq!(free(&downloads), 0);
        let (first, second) = (land(first), land(second));
        assert_ne!(first, second);
        assert_eq!(free(&downloads), 2);
        assert_eq!(land(start(1000)), first);
        // Larger than a step: neither fits, both go, and the new one stays.
        land(start(100_000));
        assert_eq!(free(&downloads), 1);
        land(start(100_000));
        assert_eq!(free(&downloads), 1);
    }

    #[test]
    fn what_is_dropped_is_waited_for() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let downloads = lane();
        drop(downloads.start(values(5, Kind::Float)).unwrap());
        assert_eq!((fake::under_way(), fake::events()), (0, 0));
    }
    #[test]
    fn a_copy_that_cannot_be_waited_for_is_over_before_it_fails() {
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let error = lane_of(fake::cudart_without_marks()).start(values(5, Kind::Float)).unwrap_err();
        assert!(matches!(error, Error::Cuda { what: "mark a copy", code: 1 }), "{error}");
        assert_eq!((fake::under_way(), fake::events()), (0, 0));
    }
}
