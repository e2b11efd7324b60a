//! placeholder
pub struct Schema;
