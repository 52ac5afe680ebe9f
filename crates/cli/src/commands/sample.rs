//! `tinsmith sample`: a prompt, or a chat on the terminal, against any server.

use std::{
    fs,
    io::{BufRead as _, Read as _, Write as _},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tinsmith::{
    Conversation, ModelInput, SampleResponse, SamplingClient, SamplingParams, ServiceClient, Stop,
    TinkerPath, Tokenizer,
};

use crate::{
    remote::Remote,
    terminal::{problem, say},
    tokenizers,
};

/// Longest prompt that is read, in bytes.
const PROMPT_BYTES_MAX: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// A base model; without it, the first that the server offers.
    #[arg(long, conflicts_with = "path")]
    model: Option<String>,
    /// A checkpoint, as `tinker://RUN/sampler_weights/NAME`.
    #[arg(long)]
    path: Option<TinkerPath>,
    /// The text to go on from; with --chat, what is said to the model.
    #[arg(long, short)]
    prompt: Option<String>,
    /// The same from a file; `-`: from standard input.
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Talk with the model, in its chat template.
    #[arg(long)]
    chat: bool,
    /// What the model is told before a chat.
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// The directory or hub id of the tokenizer; without it, as the model's name tells.
    #[arg(long, value_name = "DIR|ID")]
    tokenizer: Option<String>,
    #[command(flatten)]
    drawing: Drawing,
    /// How the answer is printed.
    #[arg(long, short, value_enum, default_value = "text")]
    format: Format,
    /// Write the answer to a file.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// How tokens are drawn.
#[derive(Args, Debug)]
struct Drawing {
    /// Tokens at most.
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
    /// 0 is greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Draw from the likeliest tokens only, so many; -1: from all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    top_k: i32,
    /// Draw from the likeliest tokens only, that together are so likely.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Answers to one prompt.
    #[arg(long, short, default_value_t = 1)]
    num_samples: u32,
    /// Makes the draws the same every time.
    #[arg(long)]
    seed: Option<u64>,
    /// A text that ends an answer; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Print the logprob of every token.
    #[arg(long)]
    logprobs: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A sampler, and how its tokens are written.
struct Sampler<'a> {
    arguments: &'a Arguments,
    client: SamplingClient,
    base_model: String,
    tokenizer: Arc<Tokenizer>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.chat || arguments.prompt.is_some() || arguments.prompt_file.is_some(),
        "sample without a prompt: give --prompt, --prompt-file or --chat"
    );
    let remote = &arguments.remote;
    let service = remote.session()?;
    let sampled = Sampler::open(arguments, &service).and_then(|sampler| sampler.run());
    let closed = remote.wait("close the session", service.close());
    sampled.and(closed)
}

impl<'a> Sampler<'a> {
    fn open(arguments: &'a Arguments, service: &ServiceClient) -> Result<Self> {
        let remote = &arguments.remote;
        let source = match (&arguments.path, &arguments.model) {
            (Some(path), _) => path.to_string(),
            (None, Some(model)) => model.clone(),
            (None, None) => first_model(remote, service)?,
        };
        let call = service.create_sampling_client(source.as_str());
        let client = remote.wait(&format!("sample from {source}"), call)?;
        let base_model = remote.wait("name the base model", client.get_base_model())?;
        let said = match arguments.tokenizer {
            Some(_) => None,
            None => Some(remote.wait("name the tokenizer", client.get_tokenizer_id())?),
        };
        let tokenizer =
            tokenizers::open(arguments.tokenizer.as_deref(), &base_model, said.as_deref())?;
        Ok(Self { arguments, client, base_model, tokenizer })
    }

    fn run(&self) -> Result<()> {
        let prompt = self.prompt()?;
        if self.arguments.chat {
            let mut chat = Conversation::new();
            if let Some(text) = &self.arguments.system {
                chat = chat.system(text);
            }
            return match prompt {
                Some(text) => {
                    let chat = chat.user(text);
                    self.show(&self.draw(chat.prompt(&self.tokenizer)?)?)
                }
                None => self.talk(chat),
            };
        }
        let tokens = self.tokenizer.encode(&prompt.unwrap_or_default(), true)?;
        ensure!(
            !tokens.is_empty(),
            "sample from an empty prompt: this model has no start of a text"
        );
        self.show(&self.draw(ModelInput::from_ints(tokens))?)
    }

    fn prompt(&self) -> Result<Option<String>> {
        let Some(file) = &self.arguments.prompt_file else {
            return Ok(self.arguments.prompt.clone());
        };
        let mut text = String::new();
        let name = file.display();
        let read = if file.as_os_str() == "-" {
            std::io::stdin().lock().take(PROMPT_BYTES_MAX).read_to_string(&mut text)
        } else {
            let file =
                fs::File::open(file).with_context(|| format!("read the prompt in {name}"))?;
            file.take(PROMPT_BYTES_MAX).read_to_string(&mut text)
        };
        read.with_context(|| format!("read the prompt in {name}"))?;
        Ok(Some(text))
    }

    fn draw(&self, prompt: ModelInput) -> Result<SampleResponse> {
        let Drawing { max_tokens, temperature, top_k, top_p, num_samples, seed, stop, .. } =
            &self.arguments.drawing;
        let params = SamplingParams {
            max_tokens: Some(*max_tokens),
            seed: *seed,
            stop: (!stop.is_empty()).then(|| Stop::Texts(stop.clone())),
            temperature: *temperature,
            top_k: *top_k,
            top_p: *top_p,
        };
        let call = self.client.sample(prompt, *num_samples, params);
        self.arguments.remote.wait("sample", call)
    }

    /// Turn by turn, until the input ends.
    fn talk(&self, mut chat: Conversation) -> Result<()> {
        say(&format!("talking with {}; Ctrl-D ends it", self.base_model));
        let mut lines = std::io::stdin().lock().lines();
        loop {
            drop(std::io::stderr().lock().write_all(b"> "));
            let Some(line) = lines.next().transpose().context("read what you say")? else {
                return Ok(());
            };
            if line.trim().is_empty() {
                continue;
            }
            let asked = chat.clone().user(line);
            let drawn = match self.draw(asked.prompt(&self.tokenizer)?) {
                Ok(drawn) => drawn,
                // The rest of the talk is not lost with one answer.
                Err(error) => {
                    problem(&format!("error: {error:#}"));
                    continue;
                }
            };
            let answer = drawn.sequences.first().context("sample: no answer came")?;
            say(&self.tokenizer.decode_plain(&answer.tokens)?);
            chat = asked.answered(&self.tokenizer, &answer.tokens)?;
        }
    }

    fn show(&self, drawn: &SampleResponse) -> Result<()> {
        let logprobs = self.arguments.drawing.logprobs;
        let text = match self.arguments.format {
            Format::Json => {
                let sequences = drawn.sequences.iter().map(|sequence| -> Result<Value> {
                    let mut json = json!({
                        "text": self.tokenizer.decode_plain(&sequence.tokens)?,
                        "tokens": sequence.tokens,
                        "stop_reason": sequence.stop_reason,
                    });
                    if logprobs {
                        json["logprobs"] = json!(sequence.logprobs);
                    }
                    Ok(json)
                });
                let sequences = sequences.collect::<Result<Vec<_>>>()?;
                let json = json!({ "base_model": self.base_model, "sequences": sequences });
                serde_json::to_string_pretty(&json).context("write the answer as JSON")?
            }
            Format::Text => self.text(drawn, logprobs)?,
        };
        match &self.arguments.output {
            Some(file) => {
                fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
            }
            None => {
                say(&text);
                Ok(())
            }
        }
    }

    fn text(&self, drawn: &SampleResponse, logprobs: bool) -> Result<String> {
        let mut lines = Vec::new();
        for (number, sequence) in drawn.sequences.iter().enumerate() {
            if drawn.sequences.len() > 1 {
                lines.push(format!("--- {} of {}", number + 1, drawn.sequences.len()));
            }
            lines.push(self.tokenizer.decode_plain(&sequence.tokens)?);
            if logprobs {
                for (token, logprob) in sequence.tokens.iter().zip(&sequence.logprobs) {
                    let text = self.tokenizer.decode(&[*token])?;
                    lines.push(format!("{logprob:10.4}  {token:7}  {text:?}"));
                }
            }
        }
        Ok(lines.join("\n"))
    }
}

fn first_model(remote: &Remote, service: &ServiceClient) -> Result<String> {
    let models = remote.wait("list the models", service.get_server_capabilities())?;
    let mut models = models.supported_models.into_iter();
    let first = models.find(|model| model.sampleable != Some(false));
    first
        .and_then(|model| model.model_name)
        .context("find a model that can be sampled: give --model")
}
