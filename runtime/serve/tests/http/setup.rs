//! A service over a model without weights.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gemma4_engine::engine::Engine;
use gemma4_engine::pool::PoolOptions;
use gemma4_engine::runner::Runner;
use gemma4_engine::scheduler::{Scheduler, SchedulerOptions, StepShape};
use gemma4_engine::speculation::SpeculationOptions;
use gemma4_model::chat::ChatTemplate;
use gemma4_model::generation::GenerationConfig;
use gemma4_model::tokenizer::Tokenizer;
use gemma4_serve::{Outcome, Parsers, ServeOptions, Service, serve};
use tokio::sync::oneshot;

use crate::model::{Arithmetic, Door, Script, VOCABULARY};

pub(crate) const MODEL: &str = "google/gemma-test";
pub(crate) const LONGEST: usize = 256;
/// Of a service whose requests have tools.
pub(crate) const LONG: usize = 2048;

/// The files of the seeded checkpoint, for its tokenizer and template.
static CHECKPOINT: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    gemma4_model::seeded::write(folder.path(), 0).expect("a checkpoint");
    folder
});

pub(crate) static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::open(CHECKPOINT.path()).expect("a tokenizer"));

pub(crate) fn template() -> ChatTemplate {
    ChatTemplate::open(CHECKPOINT.path()).expect("a template").expect("there is one")
}

pub(crate) struct Setup {
    pub(crate) pages: usize,
    pub(crate) max_queue: usize,
    pub(crate) end_at: Option<u32>,
    pub(crate) fail_at: Option<u64>,
    /// Tokens of a draft.
    pub(crate) drafts: Option<usize>,
    pub(crate) options: ServeOptions,
    pub(crate) generation: GenerationConfig,
    /// Stands in for the model of arithmetic.
    pub(crate) script: Option<Script>,
}

impl Default for Setup {
    fn default() -> Self {
        let generation = GenerationConfig { temperature: Some(0.0), eos_token_ids: vec![1, 106], ..Default::default() };
        let options = ServeOptions { grace: Duration::from_secs(60), ..ServeOptions::new(MODEL, LONGEST) };
        Self {
            pages: 1024,
            max_queue: 4096,
            end_at: None,
            fail_at: None,
            drafts: None,
            options,
            generation,
            script: None,
        }
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Engine,
    pub(crate) door: Arc<Door>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Setup {
    /// A service that tells everything apart in what `script` says, and has room for tools in a prompt.
    pub(crate) fn scripted(script: &Script) -> Self {
        let parsers = Parsers { tool_calls: true, auto_tool_choice: true, reasoning: true };
        let setup = Self::default();
        let eos_token_ids = vec![1, 106, 50];
        Self {
            options: ServeOptions { parsers, max_model_len: LONG, ..setup.options },
            generation: GenerationConfig { eos_token_ids, ..setup.generation },
            script: Some(script.clone()),
            ..setup
        }
    }

    pub(crate) fn start(self) -> Server {
        let shape = StepShape {
            tokens: 256,
            sequences: 64,
            rows: 64,
            query_tile: 16,
            items: 80,
            full_table: LONG / 8,
            sliding_table: 36,
        };
        let options = SchedulerOptions {
            max_model_len: self.options.max_model_len,
            max_num_seqs: 64,
            max_num_batched_tokens: 256,
            max_queue: self.max_queue,
            vocab_size: VOCABULARY as usize,
            shapes: vec![shape],
            pool: PoolOptions { pages: self.pages, full_block: 8, sliding_block: 8, window: 16, prefix_caching: true },
            speculation: self.drafts.map(|num_tokens| SpeculationOptions { num_tokens, lookup_min: 1, lookup_max: 3 }),
        };
        let door = Arc::new(Door::default());
        let runner: Box<dyn Runner> = match self.script {
            Some(script) => Box::new(script),
            None => Box::new(Arithmetic { door: Arc::clone(&door), end_at: self.end_at, fail_at: self.fail_at }),
        };
        let scheduler = Scheduler::new(options).expect("a scheduler");
        let engine = Engine::start(scheduler, runner).expect("a thread");
        let service = Service {
            engine: engine.clone(),
            tokenizer: TOKENIZER.clone(),
            chat_template: Some(template()),
            generation: self.generation,
            options: self.options,
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let thread = std::thread::spawn(move || serve(listener, service, shutdown).expect("a service"));
        Server { address, engine, door, stop: Some(stop), thread: Some(thread) }
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        Setup::default().start()
    }

    /// Begins the shutdown.
    pub(crate) fn shut_down(&mut self) {
        drop(self.stop.take());
    }

    /// Shuts down and waits for the end.
    pub(crate) fn end(mut self) -> Outcome {
        self.shut_down();
        self.thread.take().expect("a thread").join().expect("no panic")
    }

    pub(crate) fn used_pages(&self) -> usize {
        self.engine.statistics().load.pages.used
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.door.set(true);
        self.shut_down();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the service panicked");
        }
    }
}

/// Runs a test's clients.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

pub(crate) async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} never came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
