// A report as blocks, written as Markdown, as one HTML page, or (its tables) as plain text.
#pragma once

#include <string>
#include <variant>
#include <vector>

namespace vqlab {

struct Heading {
  std::string text;
};
struct Paragraph {
  std::string text;  // `code` in backquotes
};
struct Cell {
  std::string text, range;  // the range is set smaller
};
// The first columns are text, the others are figures.
struct Table {
  std::string caption;
  std::vector<std::string> head;
  std::vector<std::vector<Cell>> rows;
  size_t text_columns = 1;
};
struct Picture {
  std::string caption, svg;  // HTML only
};
using DocumentBlock = std::variant<Heading, Paragraph, Table, Picture>;

struct Document {
  std::string title;
  std::vector<DocumentBlock> blocks;
};

std::string to_markdown(const Document& document);
// Self-contained: style and pictures inside, no scripts, nothing loaded from elsewhere.
std::string to_html(const Document& document);
std::string to_text(const Table& table);

}  // namespace vqlab
