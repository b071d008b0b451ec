#include "document.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "charts.hpp"

namespace vqlab {
namespace {

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 1160px;
  margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .5rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #bbb; }
p { max-width: 52rem; }
code { font: .93em ui-monospace, monospace; background: #f2f2f2; padding: 0 .2em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .8rem 0; }
caption { text-align: left; padding-bottom: .3rem; color: #333; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; border-bottom: 2px solid #444; font-weight: 600; max-width: 7.5rem; }
th.words, td.words { text-align: left; }
td.words { overflow-wrap: anywhere; }
td span { display: block; color: #555; font-size: 11px; white-space: nowrap; }
figure { margin: 1rem 0; }
figcaption { color: #333; font-size: 13px; max-width: 52rem; }
svg { max-width: 100%; height: auto; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { margin: 0; max-width: none; padding: 0; font-size: 11px; }
  table { font-size: 9.5px; }
  td span { font-size: 8.5px; }
  th, td { padding: .15rem .35rem; }
  .wide { overflow: visible; }
  svg { max-width: 190mm; max-height: 165mm; width: auto; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
)";

std::string markdown_cell(const Cell& cell) {
  std::string text;
  for (const char c : cell.range.empty() ? cell.text : fmt::format("{} ({})", cell.text, cell.range)) {
    if (c == '|') text += '\\';
    text += c;
  }
  return text;
}

std::string markdown(const Table& table) {
  std::string text = table.caption.empty() ? "" : table.caption + "\n\n", rule;
  text += "|";
  for (size_t i = 0; i < table.head.size(); ++i) {
    text += fmt::format(" {} |", table.head[i]);
    rule += i < table.text_columns ? "---|" : "---:|";
  }
  text += fmt::format("\n|{}\n", rule);
  for (const std::vector<Cell>& row : table.rows) {
    text += "|";
    for (const Cell& cell : row) text += fmt::format(" {} |", markdown_cell(cell));
    text += "\n";
  }
  return text;
}

// Escaped, with `x` as code.
std::string html_inline(const std::string& words) {
  std::string html, escaped = escape_html(words);
  bool open = false;
  for (const char c : escaped) {
    if (c != '`') {
      html += c;
      continue;
    }
    html += open ? "</code>" : "<code>";
    open = !open;
  }
  return open ? html + "</code>" : html;
}

std::string html(const Table& table) {
  const auto words = [&](size_t column) { return column < table.text_columns ? " class=\"words\"" : ""; };
  std::string text = "<div class=\"wide\"><table>\n";
  if (!table.caption.empty()) text += fmt::format("<caption>{}</caption>\n", html_inline(table.caption));
  text += "<thead><tr>";
  for (size_t i = 0; i < table.head.size(); ++i)
    text += fmt::format("<th scope=\"col\"{}>{}</th>", words(i), html_inline(table.head[i]));
  text += "</tr></thead>\n<tbody>\n";
  for (const std::vector<Cell>& row : table.rows) {
    text += "<tr>";
    for (size_t i = 0; i < row.size(); ++i)
      text +=
          fmt::format("<td{}>{}{}</td>", words(i), html_inline(row[i].text),
                      row[i].range.empty() ? "" : fmt::format("<span>{}</span>", escape_html(row[i].range)));
    text += "</tr>\n";
  }
  return text + "</tbody></table></div>\n";
}

}  // namespace

std::string to_markdown(const Document& document) {
  std::string text = fmt::format("# {}\n", document.title);
  for (const DocumentBlock& block : document.blocks) {
    if (const Heading* heading = std::get_if<Heading>(&block))
      text += fmt::format("\n## {}\n", heading->text);
    else if (const Paragraph* paragraph = std::get_if<Paragraph>(&block))
      text += fmt::format("\n{}\n", paragraph->text);
    else if (const Table* table = std::get_if<Table>(&block))
      text += fmt::format("\n{}", markdown(*table));
  }
  return text;
}

std::string to_html(const Document& document) {
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
      escape_html(document.title), kStyle);
  for (const DocumentBlock& block : document.blocks) {
    if (const Heading* heading = std::get_if<Heading>(&block))
      text += fmt::format("<h2>{}</h2>\n", html_inline(heading->text));
    else if (const Paragraph* paragraph = std::get_if<Paragraph>(&block))
      text += fmt::format("<p>{}</p>\n", html_inline(paragraph->text));
    else if (const Table* table = std::get_if<Table>(&block))
      text += html(*table);
    else if (const Picture* picture = std::get_if<Picture>(&block))
      text += fmt::format("<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", picture->svg,
                          html_inline(picture->caption));
  }
  return text + "</body>\n</html>\n";
}

std::string to_text(const Table& table) {
  std::vector<size_t> widths;
  for (const std::string& head : table.head) widths.push_back(head.size());
  for (const std::vector<Cell>& row : table.rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].text.size());
  const auto row_text = [&](auto&& cell_text, size_t count) {
    std::string row;
    for (size_t i = 0; i < count; ++i)
      row += i == 0 ? fmt::format("{:<{}}", cell_text(i), widths[i])
                    : fmt::format("  {:>{}}", cell_text(i), widths[i]);
    return row + "\n";
  };
  std::string text = row_text([&](size_t i) { return table.head[i]; }, table.head.size());
  for (const std::vector<Cell>& row : table.rows)
    text += row_text([&](size_t i) { return row[i].text; }, row.size());
  return text;
}

}  // namespace vqlab
