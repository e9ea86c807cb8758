//! Numbers with names, each counted up by whoever has something to count. They begin with the boot, as all rows do.

use crate::error::Error;
use crate::row::Table;
use crate::store::{ReadTxn, WriteTxn};

impl ReadTxn<'_> {
    /// How often [`WriteTxn::count`] was called for the name.
    ///
    /// # Errors
    /// [`Error::Transaction`], [`Error::Damaged`].
    pub fn counted(&self, name: &str) -> Result<u64, Error> {
        let key = Table::Count.of_name(name);
        let Some(value) = self.get(&key)? else { return Ok(0) };
        value.try_into().map(u64::from_be_bytes).map_err(|_length| Table::Count.damaged(&key))
    }
}

impl WriteTxn<'_> {
    /// Counts one; the number that it makes.
    ///
    /// # Errors
    /// As of [`ReadTxn::counted`], and [`Error::Full`].
    pub fn count(&mut self, name: &str) -> Result<u64, Error> {
        let number = self.reader().counted(name)?.saturating_add(1);
        self.put(&Table::Count.of_name(name), &number.to_be_bytes())?;
        Ok(number)
    }
}
