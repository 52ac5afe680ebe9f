//! Encrypts files for others: the one place that knows the age format (age-encryption.org/v1).
//!
//! The server reads recipients to refuse bad ones at the door, the worker reads them again to encrypt.

#![warn(missing_docs)]

use std::{fmt, io::Write};

use age::{Encryptor, Recipient, ssh, tag, tagpq, x25519};

/// Recipients of one file.
pub const RECIPIENTS_MAX: usize = 10;
/// What the name of an encrypted file ends in.
pub const SUFFIX: &str = ".age";

/// A text that is longer is no public key; RSA's longest has about 700 bytes.
const RECIPIENT_BYTES_MAX: usize = 4096;

/// Each message is a fragment that fits "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipient is none. What was given is not repeated: it may be a private key, given by mistake.
    #[error("read recipient [{index}]: {problem}")]
    Recipient {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// The list as a whole cannot be used.
    #[error("read the recipients: {problem}")]
    List {
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// Nothing to be done about it by the caller.
    #[error("encrypt: {problem}")]
    Encrypt {
        /// What the cipher says.
        problem: String,
    },
}

/// Those who can read what is encrypted: each of them, alone.
pub struct Recipients(Vec<Box<dyn Recipient>>);

impl Recipients {
    /// Reads 1 to [`RECIPIENTS_MAX`] public keys: `age1…` (also `age1tag1…` and `age1tagpq1…` of hardware),
    /// `ssh-ed25519 …` or `ssh-rsa …`.
    ///
    /// # Errors
    /// [`Error::Recipient`] with the first that is none, [`Error::List`] for too few, too many, or kinds that
    /// do not go together.
    pub fn parse<S: AsRef<str>>(recipients: &[S]) -> Result<Self, Error> {
        let list = |problem: String| Err(Error::List { problem });
        if recipients.is_empty() {
            return list("the list is empty; leave it out for files in the clear".to_owned());
        }
        if recipients.len() > RECIPIENTS_MAX {
            let count = recipients.len();
            return list(format!("there are {count}, and {RECIPIENTS_MAX} is the most"));
        }
        let read = |(index, text): (usize, &S)| {
            one(text.as_ref().trim()).map_err(|problem| Error::Recipient { index, problem })
        };
        let recipients = Self(recipients.iter().enumerate().map(read).collect::<Result<_, _>>()?);
        // Some kinds may not be mixed; only the cipher knows which.
        match recipients.encryptor() {
            Ok(_) => Ok(recipients),
            Err(problem) => Err(Error::List { problem }),
        }
    }

    /// The encrypted file, binary; about 200 bytes longer for each recipient.
    ///
    /// # Errors
    /// [`Error::Encrypt`].
    pub fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |problem: String| Error::Encrypt { problem };
        let mut sealed = Vec::with_capacity(plain.len() + plain.len() / 1024 + 4096);
        let mut writer = self
            .encryptor()
            .map_err(failed)?
            .wrap_output(&mut sealed)
            .map_err(|error| failed(error.to_string()))?;
        writer.write_all(plain).map_err(|error| failed(error.to_string()))?;
        writer.finish().map_err(|error| failed(error.to_string()))?;
        Ok(sealed)
    }

    fn encryptor(&self) -> Result<Encryptor, String> {
        Encryptor::with_recipients(self.0.iter().map(|recipient| &**recipient))
            .map_err(|error| error.to_string())
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipients({})", self.0.len())
    }
}

fn one(text: &str) -> Result<Box<dyn Recipient>, String> {
    const KNOWN: &str =
        "an age recipient (age1…) or an SSH public key (ssh-ed25519 … or ssh-rsa …)";
    if text.len() > RECIPIENT_BYTES_MAX {
        return Err(format!("it has more than {RECIPIENT_BYTES_MAX} bytes; give {KNOWN}"));
    }
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") || text.contains("PRIVATE KEY") {
        return Err("it is a private key; give its public key".to_owned());
    }
    if text.starts_with("ssh-") {
        return match text.parse::<ssh::Recipient>() {
            Ok(recipient) => Ok(Box::new(recipient)),
            Err(error) => Err(ssh_problem(&error)),
        };
    }
    let broken = |problem: &str| format!("it is a damaged age recipient ({problem})");
    if text.starts_with("age1tagpq1") {
        let recipient: tagpq::Recipient = text.parse().map_err(broken)?;
        return Ok(Box::new(recipient));
    }
    if text.starts_with("age1tag1") {
        let recipient: tag::Recipient = text.parse().map_err(broken)?;
        return Ok(Box::new(recipient));
    }
    if text.starts_with("age1") {
        let recipient: x25519::Recipient = text.parse().map_err(broken)?;
        return Ok(Box::new(recipient));
    }
    Err(format!("it is not {KNOWN}"))
}

fn ssh_problem(error: &ssh::ParseRecipientKeyError) -> String {
    use ssh::ParseRecipientKeyError as Problem;
    match error {
        Problem::RsaModulusTooSmall => "its RSA key has fewer than 2048 bits".to_owned(),
        Problem::RsaModulusTooLarge => "its RSA key has more than 4096 bits".to_owned(),
        Problem::Invalid(_) => "it is a damaged SSH public key".to_owned(),
        Problem::Ignore | Problem::Unsupported(_) | _ => {
            "its kind of SSH key cannot be encrypted to; use ssh-ed25519 or ssh-rsa".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SSH: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN me@home";

    fn refused(recipients: &[&str]) -> String {
        Recipients::parse(recipients).unwrap_err().to_string()
    }

    #[test]
    fn each_recipient_can_read_it() {
        let identities = [x25519::Identity::generate(), x25519::Identity::generate()];
        let mut recipients: Vec<String> =
            identities.iter().map(|identity| identity.to_public().to_string()).collect();
        recipients.push(SSH.to_owned());
        let plain: Vec<u8> = (0..200_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let sealed = Recipients::parse(&recipients).unwrap().encrypt(&plain).unwrap();
        assert!(sealed.starts_with(b"age-encryption.org/v1\n-> "));
        for identity in &identities {
            let mut read = Vec::new();
            let decryptor = age::Decryptor::new(&sealed[..]).unwrap();
            let identity: &dyn age::Identity = identity;
            decryptor.decrypt(std::iter::once(identity)).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, plain);
        }
        let stranger = x25519::Identity::generate();
        let decryptor = age::Decryptor::new(&sealed[..]).unwrap();
        assert!(decryptor.decrypt(std::iter::once(&stranger as &dyn age::Identity)).is_err());
    }

    #[test]
    fn what_is_no_recipient_is_refused_by_its_place() {
        let good = x25519::Identity::generate().to_public().to_string();
        let check = |bad: &str, problem: &str| {
            assert_eq!(refused(&[&good, bad]), format!("read recipient [1]: {problem}"), "{bad}");
        };
        check("age1example", "it is a damaged age recipient (invalid Bech32 encoding)");
        check(
            "me@home",
            "it is not an age recipient (age1…) or an SSH public key (ssh-ed25519 … or ssh-rsa …)",
        );
        check("AGE-SECRET-KEY-1XYZ", "it is a private key; give its public key");
        check("ssh-ed25519 AAAA", "it is a damaged SSH public key");
        assert_eq!(
            refused(&[]),
            "read the recipients: the list is empty; leave it out for files in the clear"
        );
        assert_eq!(
            refused(&[good.as_str(); 11]),
            "read the recipients: there are 11, and 10 is the most"
        );
    }
}
