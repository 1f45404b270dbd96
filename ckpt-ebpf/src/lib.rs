#![no_std]
//! Shared types
