//! A resource as a loop sees it: everything there is, then every change.
//!
//! Invariant: a follower that missed history says so and gives a new list; its user then forgets what it knew.

use memchr::memmem;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::storage::Record;
use crate::store::{Event, Store, Watch, decode_record, storage_error};

/// A list and the changes after it.
pub struct Follower {
    store: Store,
    resource: String,
    watch: Option<Watch>,
}

/// What a follower hands out.
pub enum News {
    /// All objects there are; what was known before is void.
    All(Listed),
    /// One change.
    Change(Event),
}

impl Follower {
    /// Follows a resource (`plural` or `plural.group`). The first news is the list.
    pub fn new(store: &Store, resource: &str) -> Self {
        Self { store: store.clone(), resource: resource.to_owned(), watch: None }
    }

    /// The resource followed.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The next news. Cancel safe.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn next(&mut self) -> ApiResult<News> {
        loop {
            let Some(watch) = self.watch.as_mut() else { return self.list() };
            match watch.next().await {
                Ok(event) => return Ok(News::Change(event)),
                Err(ApiError::Expired(_)) => self.watch = None,
                Err(error) => return Err(error),
            }
        }
    }

    /// The next news if it is there already.
    ///
    /// # Errors
    /// As [`Follower::next`].
    pub fn ready(&mut self) -> ApiResult<Option<News>> {
        let Some(watch) = self.watch.as_mut() else { return self.list().map(Some) };
        match watch.ready() {
            Ok(event) => Ok(event.map(News::Change)),
            Err(ApiError::Expired(_)) => self.list().map(Some),
            Err(error) => Err(error),
        }
    }

    fn list(&mut self) -> ApiResult<News> {
        let page = self.store.engine().page(&self.resource, None, None, None, None);
        let page = page.map_err(|e| storage_error(&self.resource, "", e))?;
        self.watch = Some(self.store.watch(&self.resource, page.revision)?);
        Ok(News::All(Listed(page.items.into_iter().map(|(_, record)| record).collect())))
    }
}

/// Everything there is, as it is stored: each object is read when it is looked at, so that many cost little.
pub struct Listed(Vec<Record>);

impl Listed {
    /// The objects, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        self.0.iter().filter_map(decode_record)
    }

    /// Those in whose text one of these words stands: the others are not read.
    pub fn mentioning<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = Value> + 'a {
        let words: Vec<_> = words.iter().map(memmem::Finder::new).collect();
        let mentions = move |record: &&Record| words.iter().any(|word| word.find(&record.value).is_some());
        self.0.iter().filter(mentions).filter_map(decode_record)
    }
}
